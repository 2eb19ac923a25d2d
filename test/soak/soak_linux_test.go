package soak

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/test/leaktest"
)

func TestMain(m *testing.M) { os.Exit(leaktest.Main(m)) }

// commandTime bounds one command. It is far beyond what any takes, also on a busy machine.
const commandTime = 4 * time.Minute

// box runs the real program on a state directory of its own.
type box struct {
	t        testing.TB
	strata   string
	state    string
	root     string       // a tar with a shell
	layer    string       // the same as a layer folder
	runs     atomic.Int64 // commands whose outcome was looked at
	programs atomic.Int64 // those of them that ran a program
	inUse    atomic.Int64 // those of them that said that something is in use, which nothing was
	bad      atomic.Int64 // those with a wrong exit code or output
}

// need skips a test that lacks a program; in CI it fails.
func need(t testing.TB, program, pkg string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("it boots a VM and takes a while: run without -short")
	}
	path, err := exec.LookPath(program)
	if err != nil && os.Getenv("CI") != "" {
		t.Fatal(err)
	}
	if err != nil {
		t.Skipf("%v: apt-get install %s", err, pkg)
	}
	return path
}

func newBox(t testing.TB) *box {
	t.Helper()
	busybox := need(t, "busybox", "busybox-static")
	need(t, "qemu-img", "qemu-utils")
	b := &box{t: t, strata: bootimagetest.Strata(t), state: filepath.Join(t.TempDir(), "state")}
	bootimagetest.ImageOf(t, b.strata) // skips where there is no kernel
	leaktest.Check(t)
	work := t.TempDir()
	b.root, b.layer = filepath.Join(work, "root.tar"), filepath.Join(work, "layer")
	if err := writeRoot(b.root, busybox); err != nil {
		t.Fatal(err)
	}
	b.must("import", b.root, b.layer)
	t.Cleanup(b.end)
	return b
}

// writeRoot writes a root file system with busybox as its programs.
func writeRoot(path, busybox string) error {
	program, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(h tar.Header, content []byte) {
		h.Size = int64(len(content))
		err = errors.Join(err, w.WriteHeader(&h))
		if err == nil {
			_, err = w.Write(content)
		}
	}
	for _, dir := range []string{"bin/", "etc/", "tmp/", "proc/", "sys/", "dev/"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, program)
	for _, name := range []string{"sh", "true", "echo", "cat", "sleep", "seq"} {
		add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox"}, nil)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return err
	}
	return os.WriteFile(path, out.Bytes(), 0o600)
}

func (b *box) cmd(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.strata, args...)
	cmd.Env = append(os.Environ(), "STRATA_STATE_DIR="+b.state, "STRATA_INIT="+b.strata)
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// run runs a command and returns its standard output, its errors and its exit code.
func (b *box) run(args ...string) (out, errs string, code int) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), commandTime, errors.New("it takes too long"))
	defer cancel()
	cmd := b.cmd(ctx, args...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		return "", err.Error(), -1
	}
	if ctx.Err() != nil {
		return o.String(), fmt.Sprintf("%v\n%s", context.Cause(ctx), e.String()), -1
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

func (b *box) must(args ...string) string {
	b.t.Helper()
	out, errs, code := b.run(args...)
	if code != 0 {
		b.t.Fatalf("strata %q: exit code %d\n%s%s", args, code, out, errs)
	}
	return out
}

// expect runs a command that must end with an exit code and with an output that begins with want.
func (b *box) expect(code int, want string, args ...string) bool {
	out, errs, got := b.run(args...)
	b.runs.Add(1)
	if args[0] == "run" || args[0] == "exec" {
		b.programs.Add(1)
	}
	if strings.Contains(errs, "in use") {
		b.inUse.Add(1)
	}
	if got == code && strings.HasPrefix(out, want) {
		return true
	}
	b.bad.Add(1)
	b.t.Errorf("strata %q: exit code %d, output %q, errors %q; want exit code %d and output %q",
		args, got, out, errs, code, want)
	return false
}

// end stops all VMs and looks at what is left in the state directory.
func (b *box) end() {
	var list []struct {
		Name string `json:"name"`
	}
	out, errs, code := b.run("--json", "vm", "ls")
	if err := json.Unmarshal([]byte(out), &list); err != nil || code != 0 {
		b.t.Errorf("vm ls: exit code %d, %v\n%s%s", code, err, out, errs)
	}
	for _, vm := range list {
		if out, errs, code := b.run("vm", "stop", "--force", vm.Name); code != 0 {
			b.t.Errorf("vm stop %s: exit code %d\n%s%s", vm.Name, code, out, errs)
		}
	}
	for _, dir := range []string{"vms", "run"} {
		entries, err := os.ReadDir(filepath.Join(b.state, dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			b.t.Error(err)
		}
		for _, e := range entries {
			b.t.Errorf("left in the state directory: %s/%s", dir, e.Name())
		}
	}
}

// empty checks that a VM holds nothing but what it retains by its nature.
func (b *box) empty(vm string) {
	b.t.Helper()
	for line := range strings.Lines(b.must("vm", "inspect", vm)) {
		attached := strings.HasPrefix(line, "attached") && !strings.Contains(line, "retained")
		if attached || strings.HasPrefix(line, "container") {
			b.t.Errorf("left in VM %s: %s", vm, line)
		}
	}
}

// howLong is how long a test works.
func howLong(t testing.TB, normally time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv("STRATA_SOAK")
	if text == "" {
		return normally
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// choices returns the random numbers of one worker. Their seed is logged.
func choices(t testing.TB, worker int) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("STRATA_SOAK_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	if worker == 0 {
		t.Logf("STRATA_SOAK_SEED=%d", seed)
	}
	return rand.New(rand.NewPCG(seed, uint64(worker)))
}

// work calls f from so many workers again and again until the time is over or something went wrong.
func (b *box) work(workers int, d time.Duration, f func(r *rand.Rand, worker int)) {
	var done atomic.Int64
	var wg sync.WaitGroup
	deadline := time.Now().Add(d)
	for i := range workers {
		r := choices(b.t, i)
		wg.Go(func() {
			for time.Now().Before(deadline) && b.bad.Load() == 0 {
				f(r, i)
				done.Add(1)
			}
		})
	}
	wg.Wait()
	b.t.Logf("%d rounds of %d workers; %d commands with an expected outcome (%d ran a program), "+
		"%d false \"in use\", %d wrong",
		done.Load(), workers, b.runs.Load(), b.programs.Load(), b.inUse.Load(), b.bad.Load())
	if b.inUse.Load() > 0 {
		b.t.Error("something was said to be in use that was not")
	}
}

// TestParallel: twelve workers with mixed commands on one VM and one store. Nothing is "in use" that is
// not, each exit code is the program's, and in the end nothing is left.
func TestParallel(t *testing.T) {
	b := newBox(t)
	b.must("vm", "start")
	b.work(12, howLong(t, 20*time.Second), func(r *rand.Rand, worker int) {
		id := fmt.Sprintf("w%d", worker)
		switch r.IntN(7) {
		case 0:
			b.expect(0, "", "run", "--vm", "default", "--read-only", b.layer, "--", "/bin/true")
		case 1:
			code := r.IntN(100)
			b.expect(code, "hello", "run", "--vm", "default", "--read-only", b.root, "--",
				"/bin/sh", "-c", fmt.Sprint("echo hello; exit ", code))
		case 2, 3:
			if !b.expect(0, "", "mount", id, b.layer) {
				return
			}
			for range r.IntN(3) {
				text := fmt.Sprint("text ", r.Int())
				b.expect(0, text, "exec", id, "--", "/bin/echo", text)
			}
			b.expect(0, "", "unmount", id)
		case 4:
			b.expect(0, "[", "--json", "ls")
			b.expect(0, "", "vm", "inspect", "default")
		case 5:
			b.expect(0, "", "image", "ls")
			b.expect(0, "", "store", "gc")
		case 6:
			b.expect(0, "", "recover")
		}
	})
	b.must("recover")
	b.empty("default")
	b.must("vm", "stop")
}

// TestKilled: commands are killed at random moments, on this system itself and in a VM. What they leave the
// next commands mend: in the end nothing is left.
func TestKilled(t *testing.T) {
	b := newBox(t)
	if os.Geteuid() != 0 {
		t.Skip("layers on this system itself need root: sudo go test")
	}
	b.must("vm", "start")
	b.work(3, howLong(t, 20*time.Second), func(r *rand.Rand, worker int) {
		id := fmt.Sprintf("k%d", worker)
		vm := []string{"default", "host"}[r.IntN(2)]
		command := [][]string{
			{"run", "--vm", "default", "--read-only", b.root, "--", "/bin/sh", "-c", "sleep 0.1"},
			{"run", "--isolation=process", "--read-only", b.layer, "--", "/bin/sh", "-c", "sleep 0.1"},
			{"mount", "--vm", vm, id, b.layer},
			{"unmount", "--vm", vm, id},
			{"exec", "--vm", vm, id, "--", "/bin/seq", "100000"},
			{"recover"},
		}[r.IntN(6)]
		ctx, cancel := context.WithTimeout(context.Background(), commandTime)
		defer cancel()
		cmd := b.cmd(ctx, command...)
		if err := cmd.Start(); err != nil {
			b.bad.Add(1)
			b.t.Error(err)
			return
		}
		time.Sleep(time.Duration(r.IntN(600)) * time.Millisecond) // where it hits does not matter
		_ = cmd.Process.Signal([]syscall.Signal{syscall.SIGKILL, syscall.SIGINT, syscall.SIGTERM}[r.IntN(3)])
		_ = cmd.Wait() // whatever became of it
		if ctx.Err() != nil {
			b.bad.Add(1)
			b.t.Errorf("strata %q takes too long", command)
		}
	})
	b.must("recover")
	for _, vm := range []string{"default", "host"} {
		var list []struct {
			ID string `json:"id"`
			VM string `json:"vm"`
		}
		if err := json.Unmarshal([]byte(b.must("--json", "ls")), &list); err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			if c.VM == vm {
				b.must("unmount", "--force", "--vm", vm, c.ID)
			}
		}
	}
	b.empty("default")
	b.must("vm", "stop")
}
