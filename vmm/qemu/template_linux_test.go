package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/atomicfile"
	"github.com/stratavm/strata/internal/lockfile"
	"github.com/stratavm/strata/vmm"
)

// future is a guest that is told a time that is far ahead, so that a clock that was set shows. It notes the random
// numbers that it is given.
type future struct {
	guest
	entropy *[]string
}

const ahead = 1000 * time.Hour

func (g future) Modify(ctx context.Context, r hcsschema.GuestRequest) error {
	if s, ok := r.Settings.(hcsschema.TemplateRenewal); ok {
		*g.entropy = append(*g.entropy, string(s.Entropy))
		s.Time += int64(ahead)
		r.Settings = s
	}
	return g.guest.Modify(ctx, r)
}

// templated starts machines from templates, and counts what its QEMUs do.
type templated struct {
	t              testing.TB
	c              Config
	log            said
	booted, loaded int
	entropy        []string // of each connection to a guest that was loaded
	broken         bool     // QEMU lacks a device that the template has
}

func newTemplated(t testing.TB) *templated { return newTemplatedOf(t, image(t)) }

// newTemplatedOf is newTemplated for what is booted.
func newTemplatedOf(t testing.TB, img vmm.BootImage) *templated {
	t.Helper()
	if img.ID == "" {
		t.Fatal("the content of what is booted has no name")
	}
	h := &templated{t: t}
	h.c = Config{Kernel: img.Kernel, Initrd: img.Initrd, Cmdline: img.Cmdline, ExecPorts: 2, Template: true,
		ImageID: img.ID, CacheDir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(&h.log, nil)),
		connect: func(ctx context.Context, conn net.Conn, log *slog.Logger) (guest, error) {
			g, err := connectGCS(ctx, conn, log)
			return future{g, &h.entropy}, err
		},
		rewrite: func(args []string) []string {
			if !slices.Contains(args, "-incoming") {
				h.booted++
				return args
			}
			h.loaded++
			if h.broken {
				i := slices.IndexFunc(args, func(s string) bool { return strings.HasPrefix(s, "pci-bridge") })
				args = slices.Delete(args, i-1, i+1)
			}
			return args
		}}
	return h
}

// start starts a machine, after which so many have booted and were loaded.
func (h *templated) start(noShares bool, booted, loaded int) *Machine {
	h.t.Helper()
	c := h.c
	c.Dir, c.NoShares = filepath.Join(h.t.TempDir(), "vm"), noShares
	ctx, cancel := context.WithTimeout(h.t.Context(), 90*time.Second)
	defer cancel()
	m, err := Start(ctx, c)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { end(h.t, m) })
	if h.booted != booted || h.loaded != loaded {
		h.t.Fatalf("%d have booted and %d were loaded, want %d and %d", h.booted, h.loaded, booted, loaded)
	}
	return m
}

// memory is the file that is a machine's memory, and its number.
func (h *templated) memory(m *Machine) (*os.File, uint64) {
	h.t.Helper()
	f, err := os.OpenFile("/proc/"+strconv.Itoa(m.proc.pid)+"/fd/"+strconv.Itoa(portFD+h.c.ExecPorts+1), os.O_RDWR, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { f.Close() })
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		h.t.Fatal(err)
	}
	return f, st.Ino
}

// facts are what is a machine's own.
func facts(t testing.TB, m *Machine) map[string]string {
	t.Helper()
	out, code := guestTools(t, m)(`echo boot $(b cat /proc/sys/kernel/random/boot_id)
echo random $(b od -An -tx1 -N16 /dev/urandom); echo time $(b date +%s)`)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	words := map[string]string{}
	for line := range strings.Lines(out) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), " ")
		words[k] = v
	}
	return words
}

// TestTemplate: the first machine of a kind boots and is saved, and goes on; others are loaded, alike and yet apart.
func TestTemplate(t *testing.T) {
	needServer(t)
	needSlirp(t)
	h := newTemplated(t)
	booted := h.start(false, 1, 0)
	if e := h.entropy; len(e) != 2 || e[0] == e[1] || booted.desc.Template != "" { // as it booted, and after that
		t.Errorf("the machine that was saved is one of the template %q and was given %q", booted.desc.Template, e)
	}
	dir := t.TempDir()
	writeTree(t, dir, map[string]string{"in": "from the host"})
	apply(t, booted, share(0, dir, false, false))
	if out, code := guestTools(t, booted)("b cat 0/in"); code != 0 || out != "from the host" {
		t.Errorf("a share of the machine that was saved: %d, %s", code, out)
	}
	end(t, booted)
	h.entropy = nil
	first, second := h.start(true, 1, 1), h.start(true, 1, 2)
	kept, err := filepath.Glob(filepath.Join(h.c.CacheDir, templatesDir, "*"+templateSuffix))
	if err != nil || len(kept) != 1 {
		t.Fatalf("there are the templates %v (%v)", kept, err)
	}
	if fi, err := os.Stat(kept[0]); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the template is %v, %v", fi, err)
	}
	mapped, one := h.memory(first)
	if _, two := h.memory(second); one != two {
		t.Error("the machines have files of their own: no memory is shared")
	}
	if _, err := mapped.WriteAt([]byte{1}, 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("a machine can write to the template: %v", err)
	}
	if e := h.entropy; len(e) != 2 || len(e[0]) != entropySize || e[0] == e[1] {
		t.Errorf("the machines were given the random numbers %q", e)
	}
	a, b := facts(t, first), facts(t, second)
	for _, k := range []string{"boot", "random"} {
		if a[k] == "" || a[k] == b[k] {
			t.Errorf("%s of two machines: %q and %q", k, a[k], b[k])
		}
	}
	if out, code := run(t, first, "/run/tools/busybox", "sh", "-c", `alias b=/run/tools/busybox
for n in $(b seq 100); do b dmesg | b grep "virtual machine fork" && exit; b sleep 0.1; done; exit 1`); code != 0 {
		t.Errorf("the guest's kernel is not told that it is another machine: %d, %s", code, out)
	}
	secs, err := strconv.ParseInt(a["time"], 10, 64)
	if err != nil || time.Until(time.Unix(secs, 0)) < ahead-time.Hour {
		t.Errorf("the guest's clock says %q (%v) and was not set", a["time"], err)
	}

	// It is a machine like others: devices, other processes, control by another one.
	apply(t, first, vmm.Change{Op: vmm.Add, Mount: vmm.MappedPMEM{Slot: 5, MountPath: "/run/p"},
		Device: vmm.VPMEMDevice{Slot: 5, Path: ext4File(t, t.TempDir(), 5, 4<<20)}})
	s, err := OpenExec(t.Context(), first.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if out, code := run(t, s, "/run/tools/busybox", "ls", "/run/p"); code != 0 || !strings.Contains(out, "name") {
		t.Errorf("persistent memory, seen by another process: %d, %s", code, out)
	}
	if err := errors.Join(s.Close(), first.Close()); err != nil {
		t.Error(err)
	}
	again, err := Open(t.Context(), first.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if obs, err := again.Observe(t.Context()); err != nil || len(obs.Devices) != 2 || len(obs.Mounts) != 2 {
		t.Errorf("opened again it has %v, %v", obs, err)
	}

	// Its file may go. A machine whose memory others write to has a copy.
	if err := os.Remove(kept[0]); err != nil {
		t.Fatal(err)
	}
	third := h.start(false, 1, 3)
	if _, three := h.memory(third); three == one {
		t.Error("memory that others write to is that of the template")
	}
	apply(t, third, share(0, dir, false, false))
	if out, code := guestTools(t, third)("b cat 0/in"); code != 0 || out != "from the host" {
		t.Errorf("a share of a machine that was loaded: %d, %s", code, out)
	}
	network := networkChange(0, "a")
	apply(t, third, network)
	apply(t, third, network.Inverse())
	if err := errors.Join(again.Terminate(t.Context()), again.Close()); err != nil {
		t.Error(err)
	}
	if out, code := run(t, second, "/run/tools/busybox", "echo", "alive"); code != 0 || out != "alive\n" {
		t.Errorf("a machine whose template is gone: %d, %s", code, out)
	}

	// One that cannot be loaded boots, and says so.
	h.broken = true
	fourth := h.start(true, 2, 4)
	if fourth.desc.Template != "" || h.log.count("boots instead of being loaded") != 1 {
		t.Errorf("a machine that booted is one of the template %q", fourth.desc.Template)
	}
}

// memoryWith is a template as it is in memory: with data at its beginning, in its middle, and as its state.
func memoryWith(t testing.TB, ts templateStore, more ...int64) *os.File {
	t.Helper()
	f, err := memoryOf(ts.memory + 100)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	for _, at := range append([]int64{0, 5 * pageSize, ts.memory - 1, ts.memory + 90}, more...) {
		if _, err := f.WriteAt([]byte{1}, at); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// TestTemplateFiles: what is read is what was written; anything else counts as not there, and goes.
func TestTemplateFiles(t *testing.T) {
	ts := templateStore{dir: t.TempDir(), key: "k", memory: 4 << 20}
	whole := memoryWith(t, ts)
	if err := ts.write(t.Context(), whole); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(ts.path())
	if err != nil {
		t.Fatal(err)
	}
	got, err := ts.find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	want, have := make([]byte, ts.memory+100), make([]byte, ts.memory+100)
	if _, err := whole.ReadAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := got.ReadAt(have, 0); err != nil || !slices.Equal(have, want) {
		t.Errorf("what was read is not what was written (%v)", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(got.Fd()), &st); err != nil || st.Blocks*512 > 4*pageSize {
		t.Errorf("zeroes take memory: %d bytes (%v)", st.Blocks*512, err)
	}
	swap := func(b []byte, old, new string) []byte {
		i := strings.Index(string(b[:templateBase]), old)
		if i < 0 {
			t.Fatalf("%q is not in the head", old)
		}
		copy(b[i:], new)
		return b
	}
	for what, change := range map[string]func([]byte) []byte{
		"empty":         func([]byte) []byte { return nil },
		"torn":          func(b []byte) []byte { return b[:len(b)-pageSize] },
		"longer":        func(b []byte) []byte { return append(b, 0) },
		"no head":       func(b []byte) []byte { copy(b, "junk"); return b },
		"other version": func(b []byte) []byte { return swap(b, `"version":1`, `"version":9`) },
		"other kind":    func(b []byte) []byte { return swap(b, `"key":"k"`, `"key":"x"`) },
		"a bit":         func(b []byte) []byte { b[templateBase+5*pageSize] ^= 4; return b },
		"a page elsewhere": func(b []byte) []byte {
			b[templateBase], b[templateBase+7*pageSize] = 0, b[templateBase]
			return b
		},
	} {
		if err := os.WriteFile(ts.path(), change(slices.Clone(good)), 0o600); err != nil {
			t.Fatal(err)
		}
		if f, err := ts.find(t.Context()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v, %v", what, f, err)
		}
		if _, err := os.Stat(ts.path()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the file is still there (%v)", what, err)
		}
	}
}

// TestTemplateNoRoom: a template for which there is no room leaves nothing.
func TestTemplateNoRoom(t *testing.T) {
	ts := templateStore{dir: newSmallHost(t, 1).dir, key: "k", memory: 4 << 20}
	var all []int64
	for at := int64(0); at < ts.memory; at += pageSize {
		all = append(all, at)
	}
	if err := ts.write(t.Context(), memoryWith(t, ts, all...)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v, want %v", err, unix.ENOSPC)
	}
	if entries, err := os.ReadDir(ts.dir); err != nil || len(entries) != 0 {
		t.Errorf("there is %v (%v)", entries, err)
	}
}

// TestTemplateEnds: a copy of a template ends with the context of who makes it, and leaves nothing.
func TestTemplateEnds(t *testing.T) {
	ts := templateStore{dir: t.TempDir(), key: "k", memory: 4 << 20}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := ts.write(ctx, memoryWith(t, ts)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if entries, err := os.ReadDir(ts.dir); err != nil || len(entries) != 0 {
		t.Errorf("there is %v (%v)", entries, err)
	}
}

// TestTemplateSweep: who makes a template removes what one left that was killed, and keeps the templates that were used
// last. Who removes what is not used keeps those of machines that run.
func TestTemplateSweep(t *testing.T) {
	cache := t.TempDir()
	ts := templateStore{dir: filepath.Join(cache, templatesDir), key: "k", memory: 1 << 20}
	if err := os.Mkdir(ts.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	self, err := processStart(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	runs := fmt.Sprintf(`[{"pid":%d,"start":%d}]`, os.Getpid(), self)
	// Number 5 is the one that was used last; of it, and of what is gone and has no file, a machine runs.
	files := map[string]string{atomicfile.Prefix + "1": "torn", "gone.users": "[]", "mapped.users": runs}
	for i := range maxTemplates + 2 {
		files[strconv.Itoa(i)+templateSuffix], files[strconv.Itoa(i)+usersSuffix] = "12345", "[]"
	}
	files["1"+usersSuffix] = runs
	begin := time.Now().Add(-time.Hour)
	for name, content := range files {
		path := filepath.Join(ts.dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if i, err := strconv.Atoi(name[:1]); err == nil {
			when := begin.Add(time.Duration(i) * time.Minute)
			if err := os.Chtimes(path, when, when); err != nil {
				t.Fatal(err)
			}
		}
	}
	check := func(what string, want ...string) {
		t.Helper()
		entries, err := os.ReadDir(ts.dir)
		if err != nil {
			t.Fatal(err)
		}
		var have []string
		for _, e := range entries {
			have = append(have, e.Name())
		}
		slices.Sort(want)
		if !slices.Equal(have, want) {
			t.Errorf("%s there is %v, want %v", what, have, want)
		}
	}
	all := append(slices.Collect(maps.Keys(files)), makingLock, usersLock)
	lock, err := lockfile.Try(filepath.Join(ts.dir, makingLock), false, os.O_CREATE)
	if err != nil || lock == nil {
		t.Fatal(lock, err)
	}
	if _, err := RemoveTemplates(t.Context(), cache, time.Now(), false); !errors.Is(err, ErrTemplateBusy) {
		t.Errorf("while another one makes one: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	since := begin.Add(3 * time.Minute)
	for _, dryRun := range []bool{true, false} {
		gone, err := RemoveTemplates(t.Context(), cache, since, dryRun)
		if err != nil || len(gone) != 2 || gone[0].Key != "2" || gone[1].Key != "0" || gone[0].Bytes == 0 {
			t.Errorf("removed are %v, %v", gone, err)
		}
		if dryRun {
			check("after a dry run", all...)
		}
	}
	check("after the removal", "1.template", "1.users", "3.template", "3.users", "4.template", "4.users", "5.template",
		"5.users", "mapped.users", makingLock, usersLock)
	if list, err := Templates(cache); err != nil || len(list) != 4 || list[0].Key != "5" || list[3].VMs != 1 {
		t.Errorf("the templates are %v, %v", list, err)
	}
	if err := ts.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("after the sweep", "3.template", "3.users", "4.template", "4.users", "5.template", "5.users", "mapped.users",
		makingLock, usersLock)
}
