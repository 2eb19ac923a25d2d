package layers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// story is the changes that the machine saw, as lines with host paths shortened to their folder.
func story(w *world) []string {
	var out []string
	for _, c := range w.f.Log() {
		line := c.String()
		for _, word := range strings.Fields(line) {
			if filepath.IsAbs(word) && strings.HasPrefix(word, os.TempDir()) {
				short := filepath.Base(filepath.Dir(word))
				if filepath.Ext(word) == "" {
					short = filepath.Base(word)
				}
				line = strings.ReplaceAll(line, word, short)
			}
		}
		out = append(out, line)
	}
	return out
}

func checkStory(t *testing.T, w *world, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, story(w)); diff != "" {
		t.Errorf("what the machine saw (-want +got):\n%s", diff)
	}
}

func TestLCOWOrder(t *testing.T) {
	limits := vmmtest.LinuxLimits()
	limits.VPMEMDevices = 1 // the second layer has to go by SCSI
	w := newWorld(t, vmm.Linux, limits, 2)
	m := w.mustMount(w.request("a", w.layers))
	if m.Root != "/run/gcs/c/a/rootfs" || m.ScratchPath != "/run/gcs/c/a/scratch/a" {
		t.Errorf("root %s, scratch %s", m.Root, m.ScratchPath)
	}
	if err := m.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkStory(t, w,
		"add vpmem 0 layera (ro) + mount vpmem 0 at /run/layers/p0",
		"add scsi 0:0 layerb (ro) + mount scsi 0:0 at /run/mounts/m1",
		"add scsi 0:1 a (rw) + mount scsi 0:1 at /run/gcs/c/a",
		"add combine 2 layers at /run/gcs/c/a/rootfs",
		"remove combine 2 layers at /run/gcs/c/a/rootfs",
		"remove scsi 0:1 a (rw) + mount scsi 0:1 at /run/gcs/c/a",
		"remove vpmem 0 layera (ro) + mount vpmem 0 at /run/layers/p0",
		"remove scsi 0:0 layerb (ro) + mount scsi 0:0 at /run/mounts/m1",
	)
	w.checkEmpty()
}

func TestWCOWOrder(t *testing.T) {
	w := newWorld(t, vmm.Windows, vmmtest.WindowsLimits(), 2)
	m := w.mustMount(w.request("a", w.layers))
	if m.Root != `C:\c\a` {
		t.Errorf("root %s", m.Root)
	}
	if err := m.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkStory(t, w,
		"add vsmb s1 layera (ro)", "add vsmb s2 layerb (ro)",
		`add scsi 0:1 a (rw) + mount scsi 0:1 at C:\c\a`,
		`add combine 2 layers at C:\c\a`, `remove combine 2 layers at C:\c\a`,
		`remove scsi 0:1 a (rw) + mount scsi 0:1 at C:\c\a`,
		"remove vsmb s1 layera (ro)", "remove vsmb s2 layerb (ro)",
	)
	w.checkEmpty()
}

// What is in the VM already costs no device operation and one guest round trip.
func TestWarmMountCounts(t *testing.T) {
	for _, n := range []int{1, 3, 20} {
		w := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), n)
		first := w.request("a", w.layers)
		w.mustMount(first)
		second := first
		second.ID, second.GuestRoot = "b", ""
		w.f.Script(nil)
		w.mustMount(second)
		devices, guests := 0, 0
		for _, c := range w.f.Log() {
			if c.Device != nil {
				devices++
			}
			if c.Mount != nil {
				guests++
			}
		}
		if devices != 0 || guests != 1 {
			t.Errorf("%d layers: a warm mount took %d device operations and %d guest round trips, want 0 and 1", n, devices,
				guests)
		}
	}
}

// H: combining fails in a Windows guest: Mount fails, and nothing is left. The sweep does this too;
// this is the bare defect.
func TestDefectH_WCOWCombineFails(t *testing.T) {
	w := newWorld(t, vmm.Windows, vmmtest.WindowsLimits(), 1)
	w.f.FailNth(3, vmmtest.RefuseFirst)
	if m, err := Mount(t.Context(), w.request("a", w.layers)); !errors.Is(err, vmmtest.ErrInjected) {
		t.Fatalf("Mount: %v, %v", m, err)
	}
	w.checkEmpty()
}

// I: the scratch is attached and then the last step fails: the scratch goes too.
func TestDefectI_ScratchGoesWhenCombineFails(t *testing.T) {
	w := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 1)
	w.f.FailNth(3, vmmtest.RefuseFirst)
	if _, err := Mount(t.Context(), w.request("a", w.layers)); !errors.Is(err, vmmtest.ErrInjected) {
		t.Fatal(err)
	}
	w.checkEmpty()
}

// J: two containers share a scratch by a link. Each has a directory of its own on it.
func TestDefectJ_SharedScratchOwnDirectories(t *testing.T) {
	w := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 1)
	first := w.request("a", w.layers)
	second := w.request("b", w.layers)
	link, target := filepath.Join(second.Scratch, sandboxVHDX), filepath.Join(first.Scratch, sandboxVHDX)
	if runtime.GOOS == "windows" { // links need a privilege there
		second.names = linkFS{link: link, target: target}
	} else if err := errors.Join(os.Remove(link), os.Symlink(target, link)); err != nil {
		t.Fatal(err)
	}
	a, b := w.mustMount(first), w.mustMount(second)
	if a.ScratchPath == b.ScratchPath {
		t.Fatalf("both containers have %s", a.ScratchPath)
	}
	if want := "/run/gcs/c/a/scratch/b"; b.ScratchPath != want {
		t.Errorf("b's scratch is %s, want %s", b.ScratchPath, want)
	}
	// The disk stays for b when a goes first.
	if err := a.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(w.f.Leftovers()) != 5 {
		t.Errorf("after a went: %q", w.f.Leftovers())
	}
	if err := b.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.checkEmpty()
}

// linkFS is the host's file system with one link more.
type linkFS struct {
	hostNames
	link, target string
}

func (l linkFS) EvalSymlinks(name string) (string, error) {
	if name == l.link {
		name = l.target
	}
	return l.hostNames.EvalSymlinks(name)
}

func TestPartialUnmount(t *testing.T) {
	for _, c := range []struct {
		name string
		os   vmm.OS
		lim  vmm.Limits
		ops  []UnmountOperation
		left []int // in the machine after each
	}{
		{"lcow scratch first", vmm.Linux, vmmtest.LinuxLimits(),
			[]UnmountOperation{UnmountOperationSCSI, UnmountOperationVPMEM}, []int{4, 0}},
		{"lcow layers first", vmm.Linux, vmmtest.LinuxLimits(),
			[]UnmountOperation{UnmountOperationVPMEM, UnmountOperationAll}, []int{2, 0}},
		{"lcow no shares", vmm.Linux, vmmtest.LinuxLimits(), []UnmountOperation{UnmountOperationVSMB, UnmountOperationAll},
			[]int{6, 0}},
		{"wcow scratch first", vmm.Windows, vmmtest.WindowsLimits(),
			[]UnmountOperation{UnmountOperationSCSI, UnmountOperationVSMB}, []int{2, 0}},
		{"wcow layers first", vmm.Windows, vmmtest.WindowsLimits(),
			[]UnmountOperation{UnmountOperationVSMB, UnmountOperationSCSI}, []int{2, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.os, c.lim, 2)
			w.mustMount(w.request("a", w.layers))
			for i, op := range c.ops {
				// A partial unmount outlives the process that did it.
				if err := w.vm.Close(); err != nil {
					t.Fatal(err)
				}
				w.open()
				m, err := Open(w.vm, "a")
				if err != nil {
					t.Fatal(err)
				}
				if err := m.release(t.Context(), op); err != nil {
					t.Fatal(err)
				}
				if got := len(w.f.Leftovers()); got != c.left[i] {
					t.Errorf("after %#x: %q, want %d", uint(op), w.f.Leftovers(), c.left[i])
				}
			}
			w.checkEmpty()
			if _, err := Open(w.vm, "a"); !errors.Is(err, uvm.ErrUnknownClaim) {
				t.Errorf("the container is still known: %v", err)
			}
		})
	}
	if err := (&Mounted{ID: "a"}).release(t.Context(), 8); !errors.Is(err, ErrInvalid) {
		t.Errorf("operation 8: %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	w := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 3)
	good := w.request("a", w.layers)
	taken := w.mustMount(w.request("taken", w.layers[:1]))
	w.f.Script(nil)
	emptyFile := w.folder("empty", layerVHD)
	if err := os.Truncate(filepath.Join(emptyFile, layerVHD), 0); err != nil {
		t.Fatal(err)
	}
	dir := w.folder("dir", "x")
	if err := os.Mkdir(filepath.Join(dir, layerVHD), 0o700); err != nil {
		t.Fatal(err)
	}
	chained := append([]Layer(nil), w.layers...)
	for i := range chained {
		var parents []string
		for _, p := range chained[i+1:] {
			parents = append(parents, p.Folder)
		}
		if err := layerdir.WriteChain(chained[i].Folder, parents); err != nil {
			t.Fatal(err)
		}
	}
	reversed := []Layer{chained[2], chained[1], chained[0]}
	for _, c := range []struct {
		name string
		edit func(*Request)
		want error
		text string
	}{
		{"no id", func(r *Request) { r.ID = "" }, ErrInvalid, "container id"},
		{"id with dots", func(r *Request) { r.ID = "../x" }, ErrInvalid, "../x"},
		{"id with newline", func(r *Request) { r.ID = "a\nb" }, ErrInvalid, `a\nb`},
		{"id in use", func(r *Request) { r.ID = "taken" }, uvm.ErrClaimed, "taken"},
		{"nothing", func(r *Request) { r.Layers, r.Scratch = nil, "" }, ErrInvalid, "no layers"},
		{"missing layer", func(r *Request) { r.Layers = []Layer{{Folder: "/no/such"}} }, fs.ErrNotExist, "/no/such"},
		{"relative layer", func(r *Request) { r.Layers = []Layer{{Folder: "l"}} }, ErrInvalid, "absolute"},
		{"empty layer", func(r *Request) { r.Layers = []Layer{{Folder: emptyFile}} }, ErrInvalid, "import the layer again"},
		{"folder for a file", func(r *Request) { r.Layers = []Layer{{Folder: dir}} }, ErrInvalid, "not a regular file"},
		{"folder and file", func(r *Request) { r.Layers = []Layer{{Folder: "/a", File: "/b"}} }, ErrInvalid,
			"folder or a file"},
		{"duplicate", func(r *Request) { r.Layers = []Layer{w.layers[0], {Folder: w.layers[0].Folder + "/."}} },
			ErrDuplicateLayer, "also given"},
		{"wrong order", func(r *Request) { r.Layers = reversed }, ErrLayerOrder, chained[0].Folder},
		{"missing scratch", func(r *Request) { r.Scratch = "/no/such" }, fs.ErrNotExist, "create it first"},
		{"relative scratch", func(r *Request) { r.Scratch = "s" }, ErrInvalid, "absolute"},
		{"empty scratch", func(r *Request) { r.Scratch = filepath.Join(emptyFile, layerVHD) }, ErrInvalid, "create it again"},
		{"no VM", func(r *Request) { r.VM, r.Host = nil, nil }, ErrInvalid, "strata.OpenHost"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := good
			c.edit(&r)
			_, err := Mount(t.Context(), r)
			if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.text) {
				t.Errorf("Mount: %v; want it to match %v and say %q", err, c.want, c.text)
			}
		})
	}
	if log := w.f.Log(); len(log) != 0 {
		t.Errorf("bad requests reached the machine: %q", log)
	}
	if err := taken.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.checkEmpty()
}

// TestNoEROFS: a VM that cannot mount the only file of a layer says which file that is, and what would do.
func TestNoEROFS(t *testing.T) {
	limits := vmmtest.LinuxLimits()
	limits.EROFS = false
	w := newWorld(t, vmm.Linux, limits, 0)
	_, err := Mount(t.Context(), Request{VM: w.vm, ID: "a", Layers: []Layer{{Folder: w.folder("erofs", layerEROFS)}}})
	if !errors.Is(err, fs.ErrNotExist) ||
		!strings.Contains(fmt.Sprint(err),
			"holds layer.erofs, which this machine cannot mount; import the layer as layer.vhd") {
		t.Errorf("Mount: %v", err)
	}
}

// Paths that would be options or several arguments to careless code are just paths.
func TestOddPaths(t *testing.T) {
	w := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 0)
	for i, name := range []string{"a,b", `q"u'o`, "s p a c e", "new\nline", "-dash", "per%cent%s", "ünï", "$(x)`y`"} {
		if runtime.GOOS == "windows" && strings.ContainsAny(name, "\"\n") {
			continue // no file can have such a name there
		}
		r := w.request(fmt.Sprintf("c%d", i), []Layer{{Folder: w.folder(name, layerVHD)}})
		m := w.mustMount(r)
		if err := m.Release(t.Context()); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	w.checkEmpty()
}

func TestReferenceAPI(t *testing.T) {
	w := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 2)
	ctx := t.Context()
	folders := []string{w.layers[0].Folder, w.layers[1].Folder, w.scratch("a")}
	root, err := MountContainerLayers(ctx, folders, "/run/gcs/c/a", w.vm)
	if err != nil || root != "/run/gcs/c/a/rootfs" {
		t.Fatalf("MountContainerLayers: %q, %v", root, err)
	}
	for _, other := range []string{"/run/other/a", "/run/gcs/c/a/rootfs/a", "a", "/a/rootfs"} {
		if err := UnmountContainerLayers(ctx, folders, other, w.vm, UnmountOperationAll); !errors.Is(err,
			uvm.ErrNotAttached) {
			t.Errorf("unmount of %q, where nothing is: %v", other, err)
		}
	}
	il := NewImageLayers(w.vm, "/run/gcs/c/a", folders)
	for _, all := range []bool{false, false, true, true} {
		if err := il.Release(ctx, all); err != nil {
			t.Fatalf("Release(%t): %v", all, err)
		}
	}
	w.checkEmpty()
	if err := UnmountContainerLayers(ctx, folders, "/run/gcs/c/a", w.vm, UnmountOperationAll); !errors.Is(err,
		uvm.ErrNotAttached) {
		t.Errorf("unmount of what is not mounted: %v", err)
	}

	win := newWorld(t, vmm.Windows, vmmtest.WindowsLimits(), 2)
	mt := Mounter{Host: ids{}}
	folders = []string{win.layers[0].Folder, win.layers[1].Folder, win.scratch("1")}
	if _, err := mt.MountContainerLayers(ctx, folders, `C:\c\1`, win.vm); err != nil {
		t.Fatal(err)
	}
	got, err := mt.GetHCSLayers(ctx, win.vm, folders[:2])
	if err != nil || len(got) != 2 || got[1].Id != "id-of-layerb" || !strings.HasSuffix(got[1].Path, `\s2`) {
		t.Errorf("GetHCSLayers: %+v, %v", got, err)
	}
	if _, err := mt.GetHCSLayers(ctx, win.vm, []string{"/other"}); !errors.Is(err, uvm.ErrNotAttached) {
		t.Errorf("GetHCSLayers of what is not shared: %v", err)
	}
	if err := mt.UnmountContainerLayers(ctx, folders, `C:\c\1`, win.vm, UnmountOperationAll); err != nil {
		t.Fatal(err)
	}
	win.checkEmpty()
}

// A root that is in use is not unmounted, nor is anything below it touched: the container is as it
// was, also for the next process, and the error names the holder once.
func TestBusyRootStaysMounted(t *testing.T) {
	w := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 2)
	w.mustMount(w.request("a", w.layers))
	m, err := Open(w.vm, "a")
	if err != nil {
		t.Fatal(err)
	}
	before := w.f.Leftovers()
	w.f.Hold("/run/gcs/c/a/rootfs", "process 7 (sleep)")
	for range 2 {
		err := m.Release(t.Context())
		if !errors.Is(err, vmm.ErrBusy) || strings.Count(err.Error(), "process 7 (sleep)") != 1 {
			t.Fatalf("Release: %v", err)
		}
	}
	if diff := cmp.Diff(before, w.f.Leftovers()); diff != "" {
		t.Error(diff)
	}
	if err := w.vm.Close(); err != nil {
		t.Fatal(err)
	}
	w.open()
	if diff := cmp.Diff(before, w.f.Leftovers()); diff != "" {
		t.Errorf("opening the VM touched a container that is mounted:\n%s", diff)
	}
	w.f.Hold("/run/gcs/c/a/rootfs", "")
	if m, err = Open(w.vm, "a"); err != nil {
		t.Fatal(err)
	}
	if err := m.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.checkEmpty()
}
