package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// need finds a program, or says how to get it.
func need(t testing.TB, program, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("%v: apt-get install %s", err, pkg)
	}
	return path
}

// startVM starts a VM of the test's own, which ends with the test.
func startVM(t testing.TB) (vm *uvm.UtilityVM, dir string) {
	t.Helper()
	need(t, "qemu-system-x86_64", "qemu-system-x86")
	dir = filepath.Join(t.TempDir(), "vm")
	o := strata.VMOptions{Dir: dir, Image: bootimagetest.Image(t)}
	t.Cleanup(func() {
		if err := strata.KillVM(context.Background(), dir); err != nil && !errors.Is(err, strata.ErrNoVM) {
			t.Errorf("ending the VM: %v", err)
		}
	})
	vm, err := strata.StartVM(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Errorf("closing the VM: %v", err)
		}
	})
	return vm, dir
}

// makeLayer writes a layer folder of files, as treetest.Programs takes them.
func makeLayer(t testing.TB, dir string, files map[string]string, as layerdir.Options) string {
	t.Helper()
	as.Tar, as.Dir = bytes.NewReader(treetest.Programs(t, files)), dir
	if _, err := layerdir.Convert(t.Context(), as); err != nil {
		t.Fatal(err)
	}
	return dir
}

// stack creates n layers, top first, and tells what /data holds when they are merged. Each layer adds a
// file, changes one, and every third deletes what an earlier one added.
func stack(t testing.TB, n int) (top []layers.Layer, data map[string]string) {
	t.Helper()
	return stackAs(t, n, layerdir.Options{})
}

// stackAs is stack with layers of another format.
func stackAs(t testing.TB, n int, as layerdir.Options) (top []layers.Layer, data map[string]string) {
	t.Helper()
	busybox, err := os.ReadFile(need(t, "busybox", "busybox-static"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	data = map[string]string{}
	for i := range n {
		files := map[string]string{"data/": "", fmt.Sprintf("data/f%d", i): fmt.Sprint(i), "data/last": fmt.Sprint(i)}
		data[fmt.Sprintf("f%d", i)], data["last"] = fmt.Sprint(i), fmt.Sprint(i)
		if i%3 == 2 {
			files[fmt.Sprintf("data/.wh.f%d", i-1)] = ""
			delete(data, fmt.Sprintf("f%d", i-1))
		}
		if i == 0 {
			for _, d := range []string{"bin/", "proc/", "dev/", "sys/", "tmp/", "etc/"} {
				files[d] = ""
			}
			files["bin/busybox"] = string(busybox)
		}
		l := layers.Layer{Folder: makeLayer(t, filepath.Join(dir, fmt.Sprint(i)), files, as)}
		top = append([]layers.Layer{l}, top...)
	}
	writeChains(t, top)
	return top, data
}

// writeChains gives every layer its layerchain.json, as the layers of a store have it.
func writeChains(t testing.TB, top []layers.Layer) {
	t.Helper()
	parents := make([]string, len(top))
	for i, l := range top {
		parents[i] = l.Folder
	}
	for i, l := range top {
		if err := layerdir.WriteChain(l.Folder, parents[i+1:]); err != nil {
			t.Fatal(err)
		}
	}
}

func scratch(t testing.TB) string {
	t.Helper()
	need(t, "qemu-img", "qemu-utils")
	dir := filepath.Join(t.TempDir(), "scratch")
	if _, err := layerdir.CreateScratch(t.Context(), layerdir.ScratchOptions{Dir: dir, Size: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func mount(t testing.TB, r layers.Request) *layers.Mounted {
	t.Helper()
	m, err := layers.Mount(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func release(t testing.TB, m *layers.Mounted) {
	t.Helper()
	if err := m.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// sh runs a shell script in a container and returns what it prints. It must succeed.
func sh(t testing.TB, m *layers.Mounted, script string) string {
	t.Helper()
	var out, errs bytes.Buffer
	code, err := m.Run(t.Context(), vmm.ProcessSpec{Args: []string{"/bin/busybox", "sh", "-c", script},
		Env: []string{"PATH=/bin"}, Stdout: &out, Stderr: &errs})
	if err != nil || code != 0 {
		t.Fatalf("%s: exit code %d, %v: %s", script, code, err, errs.String())
	}
	return out.String()
}

const listData = `cd /data && for f in *; do echo "$f=$(/bin/busybox cat $f)"; done`

func parseData(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		name, content, _ := strings.Cut(strings.TrimSpace(line), "=")
		out[name] = content
	}
	return out
}

// empty checks that nothing but retained devices is left, in the ledger and in the machine.
func empty(t testing.TB, vm *uvm.UtilityVM) {
	t.Helper()
	if s := vm.Status(); !s.Empty() {
		t.Errorf("the ledger is not empty: %+v", s)
	}
	obs, err := vm.Machine().Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(obs.Mounts) > 0 {
		t.Errorf("the guest has mounted %v", obs.Mounts)
	}
	for _, d := range obs.Devices {
		if _, pmem := d.(vmm.VPMEMDevice); !pmem || !vm.Limits().VPMEMRetained {
			t.Errorf("%s is attached", d)
		}
	}
}

// TestRealLayers mounts stacks of layers with whiteouts in a real VM and looks at the result from inside.
func TestRealLayers(t *testing.T) {
	leaktest.Check(t)
	vm, _ := startVM(t)
	disk := scratch(t)
	for _, n := range []int{1, 3, 40} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			top, want := stack(t, n)
			m := mount(t, layers.Request{VM: vm, ID: fmt.Sprint("stack", n), Layers: top, Scratch: disk})
			if n == 40 {
				bothWays(t, vm)
			}
			if d := cmp.Diff(want, parseData(sh(t, m, listData))); d != "" {
				t.Error(d)
			}
			sh(t, m, "echo new > /data/new && rm /data/last")
			delete(want, "last")
			want["new"] = "new"
			if d := cmp.Diff(want, parseData(sh(t, m, listData))); d != "" {
				t.Error(d)
			}
			release(t, m)
			empty(t, vm)
		})
	}
}

// bothWays checks that 40 layers travel over persistent memory until that is full, and the rest over SCSI.
func bothWays(t *testing.T, vm *uvm.UtilityVM) {
	t.Helper()
	obs, err := vm.Machine().Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slots, pmem, scsi := 0, 0, 0
	for _, d := range obs.Devices {
		if _, ok := d.(vmm.VPMEMDevice); ok {
			slots++ // also those that retained layers of an earlier stack take
		}
	}
	for _, g := range obs.Mounts {
		switch g.(type) {
		case vmm.MappedPMEM:
			pmem++
		case vmm.MappedDisk:
			scsi++
		}
	}
	const layers, scratch = 40, 1
	if slots != int(vm.Machine().Limits().VPMEMDevices) || pmem == 0 || scsi <= scratch || pmem+scsi != layers+scratch {
		t.Errorf("%d slots of persistent memory are taken, %d layers are mounted from there and %d disks", slots, pmem, scsi)
	}
}

// TestRealSharing: two containers share layers, a third shares the scratch of the first; none sees
// what another writes.
func TestRealSharing(t *testing.T) {
	leaktest.Check(t)
	vm, _ := startVM(t)
	top, want := stack(t, 3)
	one := scratch(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Mkdir(link, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(one, layerdir.ScratchName), filepath.Join(link, layerdir.ScratchName)); err != nil {
		t.Fatal(err)
	}
	var all []*layers.Mounted
	for i, s := range []string{one, scratch(t), link} {
		all = append(all, mount(t, layers.Request{VM: vm, ID: fmt.Sprint("c", i), Layers: top, Scratch: s}))
	}
	for i, m := range all {
		sh(t, m, fmt.Sprintf("echo %d > /data/mine", i))
	}
	for i, m := range all {
		want["mine"] = fmt.Sprint(i)
		if d := cmp.Diff(want, parseData(sh(t, m, listData))); d != "" {
			t.Errorf("container %d: %s", i, d)
		}
	}
	disks := 0
	obs, err := vm.Machine().Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range obs.Devices {
		if disk, ok := d.(vmm.SCSIDisk); ok && !disk.ReadOnly {
			disks++
		}
	}
	if disks != 2 {
		t.Errorf("%d scratch disks for two scratches", disks)
	}
	release(t, all[0])
	if got := sh(t, all[2], "cat /data/mine"); got != "2\n" {
		t.Errorf("after the other user of the scratch went, the file holds %q", got)
	}
	release(t, all[1])
	release(t, all[2])
	empty(t, vm)
}

// TestRealOneDisk: many layers behind one disk, as an index, as partitions, and as partitions that the
// guest checks against hash trees, show what they show one by one, and cost one device.
func TestRealOneDisk(t *testing.T) {
	leaktest.Check(t)
	vm, _ := startVM(t)
	for _, c := range []struct {
		name   string
		as     layerdir.Options
		attach layers.Attach
	}{
		{"index", layerdir.Options{Format: layerdir.EROFS}, layers.AttachAuto},
		{"partitions", layerdir.Options{Format: layerdir.VHD}, layers.AttachOneDisk},
		{"verity erofs", layerdir.Options{Format: layerdir.EROFS, Verity: true}, layers.AttachAuto},
		{"verity ext4", layerdir.Options{Format: layerdir.VHD, Verity: true}, layers.AttachAuto},
		{"separate", layerdir.Options{Format: layerdir.EROFS}, layers.AttachSeparate},
	} {
		t.Run(c.name, func(t *testing.T) {
			const n = 12
			top, want := stackAs(t, n, c.as)
			m := mount(t, layers.Request{VM: vm, ID: "a", Layers: top, Scratch: scratch(t), Attach: c.attach})
			if d := cmp.Diff(want, parseData(sh(t, m, listData))); d != "" {
				t.Error(d)
			}
			obs, err := vm.Machine().Observe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			disks := 0
			for _, d := range obs.Devices {
				if _, ok := d.(vmm.SCSIDisk); ok {
					disks++
				}
			}
			if want := 2; c.attach != layers.AttachSeparate && disks != want {
				t.Errorf("%d disks, want %d: one for the layers, one for the scratch", disks, want)
			}
			release(t, m)
			empty(t, vm)
		})
	}
	// An image of others, which the guest can read and an index cannot serve.
	need(t, "mkfs.erofs", "erofs-utils")
	folder, foreign := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "text"), bytes.Repeat([]byte("a line\n"), 1<<14), 0o644); err != nil {
		t.Fatal(err)
	}
	treetest.Run(t, "mkfs.erofs", "-zlz4hc", "--quiet", filepath.Join(foreign, layerdir.EROFS.FileName()), folder)
	top, _ := stackAs(t, 2, layerdir.Options{Format: layerdir.EROFS})
	m := mount(t, layers.Request{VM: vm, ID: "compressed", Layers: append([]layers.Layer{{Folder: foreign}}, top...)})
	if got := sh(t, m, "cat /text | wc -l"); strings.TrimSpace(got) != fmt.Sprint(1<<14) {
		t.Errorf("the file in the compressed layer has %q lines", got)
	}
	release(t, m)
	empty(t, vm)
	// What was changed after the hash tree was made cannot be read.
	top, _ = stackAs(t, 1, layerdir.Options{Format: layerdir.EROFS, Verity: true})
	file := filepath.Join(top[0].Folder, layerdir.EROFS.FileName())
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed, block := 0, append([]byte("0"), make([]byte, 4095)...)
	for at := 0; at+len(block) <= len(b); at += len(block) {
		if bytes.Equal(b[at:at+len(block)], block) { // the content of /data/f0
			b[at] = '1'
			changed++
		}
	}
	if err := os.WriteFile(file, b, 0o600); err != nil || changed == 0 {
		t.Fatalf("%d blocks changed, %v", changed, err)
	}
	m = mount(t, layers.Request{VM: vm, ID: "bad", Layers: top})
	if got := sh(t, m, "cat /data/f0 2>/dev/null || echo refused"); got != "refused\n" {
		t.Errorf("a file that does not match the hash tree holds %q", got)
	}
	release(t, m)
	empty(t, vm)
}

// TestRealBusy: a scratch with an open file is not unplugged; the error names who holds it, and when
// that is gone the same Release succeeds.
func TestRealBusy(t *testing.T) {
	leaktest.Check(t)
	vm, _ := startVM(t)
	top, _ := stack(t, 1)
	m := mount(t, layers.Request{VM: vm, ID: "busy", Layers: top, Scratch: scratch(t)})
	// In the VM, not in the container, whose processes go with it.
	p, err := vm.Exec(t.Context(), vmm.ProcessSpec{
		Args: []string{m.Root + "/bin/busybox", "sleep", "1000"}, Dir: m.Root + "/data",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	err = m.Release(t.Context())
	if err == nil || !strings.Contains(err.Error(), "(busybox) by working directory") {
		t.Fatalf("releasing a root in which a program works: %v", err)
	}
	if err := p.Signal(t.Context(), 9); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	release(t, m)
	empty(t, vm)
}

// TestRealReopen: another handle finds what the first one mounted, and takes it away.
func TestRealReopen(t *testing.T) {
	leaktest.Check(t)
	vm, dir := startVM(t)
	top, want := stack(t, 2)
	mount(t, layers.Request{VM: vm, ID: "stays", Layers: top, Scratch: scratch(t)})
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := strata.OpenVM(t.Context(), dir, strata.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	m, err := layers.Open(again, "stays")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, parseData(sh(t, m, listData))); d != "" {
		t.Error(d)
	}
	release(t, m)
	empty(t, again)
}
