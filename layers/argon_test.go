package layers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Microsoft/go-winio/pkg/guid"
	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/argon"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// fakeHost is a Windows host that keeps the order of its calls, knows what is on, and fails the call
// that it is told to.
type fakeHost struct {
	wclayer.Host
	calls []string
	on    map[string]bool
	fail  int // counts down to the call that fails
}

var errHost = errors.New("the host refuses")

func (h *fakeHost) call(name, what string, needs string, set bool) error {
	h.calls = append(h.calls, name)
	if h.fail--; h.fail == 0 {
		return errHost
	}
	if needs != "" && !h.on[needs] {
		return fmt.Errorf("%s without %s", name, needs)
	}
	if h.on == nil {
		h.on = map[string]bool{}
	}
	if what != "" {
		if h.on[what] = set; !set {
			delete(h.on, what)
		}
	}
	return nil
}

func (h *fakeHost) Activate(_ context.Context, _ string) error {
	return h.call("activate", "active", "", true)
}
func (h *fakeHost) Deactivate(_ context.Context, _ string) error {
	return h.call("deactivate", "active", "", false)
}
func (h *fakeHost) Prepare(_ context.Context, _ string, parents []string) error {
	return h.call("prepare "+strings.Join(parents, ","), "prepared", "active", true)
}
func (h *fakeHost) Unprepare(_ context.Context, _ string) error {
	return h.call("unprepare", "prepared", "", false)
}
func (h *fakeHost) MountPath(_ context.Context, _ string) (string, error) {
	return `\\?\Volume{1}\`, h.call("path", "", "active", true)
}
func (h *fakeHost) MountCIM(_ context.Context, v guid.GUID, m wclayer.CIMMount) (string, error) {
	return `\\?\Volume{` + v.String() + `}\`, h.call("mount "+m.Image.Name, "cim", "", true)
}
func (h *fakeHost) DismountCIM(context.Context, guid.GUID) error {
	return h.call("dismount", "cim", "", false)
}
func (h *fakeHost) AttachOverlay(_ context.Context, _ string, l []wclayer.OverlayLayer) error {
	return h.call("overlay "+l[0].Path, "overlay", "cim", true)
}
func (h *fakeHost) DetachOverlay(context.Context, string) error {
	return h.call("no overlay", "overlay", "", false)
}

// anyNames says that every folder is there, and every file.
type anyNames struct{}

func (anyNames) Stat(name string) (fs.FileInfo, error)    { return anyFile{name}, nil }
func (anyNames) EvalSymlinks(name string) (string, error) { return name, nil }

// onlyNames says that those files are there, and nothing else.
type onlyNames []string

func (n onlyNames) Stat(name string) (fs.FileInfo, error) {
	if slices.Contains(n, name) {
		return anyFile{name}, nil
	}
	return nil, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
}

func (onlyNames) EvalSymlinks(name string) (string, error) { return name, nil }

type anyFile struct{ name string }

func (f anyFile) Name() string       { return hostpath.Base(f.name) }
func (f anyFile) Size() int64        { return 4096 }
func (f anyFile) ModTime() time.Time { return time.Time{} }
func (f anyFile) IsDir() bool        { return hostpath.Ext(f.name) == "" }
func (f anyFile) Sys() any           { return nil }
func (f anyFile) Mode() fs.FileMode {
	if f.IsDir() {
		return fs.ModeDir
	}
	return 0
}

// hostVM is a Windows host itself, opened as a machine.
func hostVM(t *testing.T, h wclayer.Host) *uvm.UtilityVM {
	t.Helper()
	dir := t.TempDir()
	vm, err := uvm.Open(t.Context(), dir, func(context.Context) (vmm.Machine, error) {
		return argon.Open(argon.Options{Dir: filepath.Join(dir, "argon"), Boot: "this", Host: h})
	}, uvm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = vm.Close() })
	return vm
}

func argonRequest(vm *uvm.UtilityVM, cim bool) Request {
	r := Request{VM: vm, ID: "a", Scratch: `C:\c\a`, names: anyNames{}}
	if cim {
		r.CIM = &wclayer.CIMMount{Image: wclayer.CIM{Dir: `C:\cims`, Name: "top.cim"}}
	} else {
		r.Layers = []Layer{{Folder: `C:\l\top`}, {Folder: `C:\l\base`}}
	}
	return r
}

func TestArgonOrder(t *testing.T) {
	for cim, want := range map[bool][]string{
		false: {"activate", `prepare C:\l\top,C:\l\base`, "path", "unprepare", "deactivate"},
		true: {"mount top.cim", "activate", "path", `overlay \\?\Volume{GUID}\Files`, "path",
			"path", "no overlay", "deactivate", "dismount"},
	} {
		h := &fakeHost{}
		vm := hostVM(t, h)
		m, err := Mount(t.Context(), argonRequest(vm, cim))
		if err != nil {
			t.Fatal(err)
		}
		if m.Root != `\\?\Volume{1}\` {
			t.Errorf("root %s", m.Root)
		}
		if c, err := Lookup(vm.Dir(), "a"); err != nil || c.Root != m.Root {
			t.Errorf("found %+v, %v", c, err)
		}
		twice := argonRequest(vm, cim)
		twice.ID = "b"
		if _, err := Mount(t.Context(), twice); !errors.Is(err, uvm.ErrAlreadyAttached) {
			t.Errorf("a second container on one scratch: %v", err)
		}
		if cim { // its image came and went
			h.calls = slices.Delete(h.calls, 5, 7)
		}
		for range 2 {
			if err := m.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for i, c := range h.calls {
			h.calls[i] = regexp.MustCompile(`[0-9a-f-]{36}`).ReplaceAllString(c, "GUID")
		}
		if diff := cmp.Diff(want, h.calls); diff != "" {
			t.Errorf("cim=%t (-want +got):\n%s", cim, diff)
		}
		if s := vm.Status(); !s.Empty() {
			t.Errorf("left in the ledger: %+v", s)
		}
	}
}

// Every call fails once, in mount and in unmount: nothing stays on after another Release.
func TestArgonFaults(t *testing.T) {
	for _, cim := range []bool{false, true} {
		for k := 1; ; k++ {
			h := &fakeHost{fail: k}
			vm := hostVM(t, h)
			m, err := Mount(t.Context(), argonRequest(vm, cim))
			if err == nil {
				err = m.Release(t.Context())
				if h.fail > 0 {
					break
				}
				if rerr := m.Release(t.Context()); rerr != nil {
					t.Errorf("call %d: release again: %v", k, rerr)
				}
			}
			if !errors.Is(err, errHost) {
				t.Errorf("call %d failed and the error is %v", k, err)
			}
			if s := vm.Status(); len(h.on) > 0 || !s.Empty() {
				t.Errorf("call %d failed and this stayed on: %v, %+v", k, h.on, s)
			}
		}
	}
}

// What a request for the host lacks is said before anything is called.
func TestBadArgonRequests(t *testing.T) {
	h := &fakeHost{}
	vm := hostVM(t, h)
	for name, tt := range map[string]struct {
		edit func(*Request)
		is   error
		says string
	}{
		"no VM":      {func(r *Request) { r.VM = nil }, ErrInvalid, "strata.OpenHost"},
		"no scratch": {func(r *Request) { r.Scratch = "" }, ErrInvalid, "scratch"},
		"no layers":  {func(r *Request) { r.Layers = nil }, ErrInvalid, "at least one layer"},
		"no disk":    {func(r *Request) { r.names = hostNames{} }, fs.ErrNotExist, "sandbox.vhdx"},
		"a hash tree": {func(r *Request) { r.Layers[0].Verity = &vmm.Verity{RootDigest: "one"} },
			ErrUnchecked, "hash tree"},
		"both": {func(r *Request) { r.CIM = &wclayer.CIMMount{Image: wclayer.CIM{Dir: `C:\c`, Name: "a"}} }, ErrInvalid,
			"not both"},
		"no image": {func(r *Request) {
			*r = argonRequest(r.VM, true)
			r.names = onlyNames{`C:\c\a\sandbox.vhdx`}
		}, fs.ErrNotExist, `C:\cims\top.cim`},
	} {
		r := argonRequest(vm, false)
		tt.edit(&r)
		if _, err := Mount(t.Context(), r); !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(h.calls) > 0 {
		t.Errorf("called: %q", h.calls)
	}
}

func TestArgonUnmountByFolders(t *testing.T) {
	h := &fakeHost{}
	mt := Mounter{Host: h}
	folders := []string{`C:\l\base`, `C:\c\a`}
	if root, err := mt.MountContainerLayers(t.Context(), folders, "", nil); err != nil || root != `\\?\Volume{1}\` {
		t.Fatal(root, err)
	}
	if err := mt.UnmountContainerLayers(t.Context(), folders, "", nil, UnmountOperationSCSI); !errors.Is(err, ErrInvalid) {
		t.Errorf("partial unmount: %v", err)
	}
	h.fail = 1
	il := mt.NewImageLayers(nil, "", folders)
	if err := il.Release(t.Context(), false); !errors.Is(err, errHost) {
		t.Errorf("Release: %v", err)
	}
	if h.on["active"] {
		t.Error("a failing unprepare kept the scratch active")
	}
	if err := il.Release(t.Context(), false); err != nil {
		t.Errorf("Release again: %v", err)
	}
	if _, err := mt.MountContainerLayers(t.Context(), folders[:1], "", nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("one folder: %v", err)
	}
}

func cimRequest(w *world) Request {
	r := w.request("a", nil)
	r.CIM = &wclayer.CIMMount{Kind: wclayer.BlockFile,
		Image:   wclayer.CIM{Dir: `C:\b\merged.bcim`, Name: "merged.cim"},
		Sources: []wclayer.CIM{{Dir: `C:\b\top.bcim`, Name: "top.cim"}, {Dir: `C:\b\base.bcim`, Name: "base.cim"}}}
	return r
}

// I: each change of a mount of block images is refused once, and nothing is left: not the volume, whose
// disks could not go while it is mounted, nor the scratch.
func TestDefectI_XenonCIM(t *testing.T) {
	for k := 1; ; k++ {
		w := newWorld(t, vmm.Windows, vmmtest.WindowsLimits(), 0)
		w.f.FailNth(k, vmmtest.RefuseFirst)
		m, err := Mount(t.Context(), cimRequest(w))
		if err == nil {
			if changes := 6; k != changes+1 { // three disks, the volume, the scratch, the root
				t.Errorf("a mount took %d changes, want %d", k-1, changes)
			}
			w.f.Script(nil)
			if err := m.Release(t.Context()); err != nil {
				t.Error(err)
			}
			w.checkEmpty()
			return
		}
		if !errors.Is(err, vmmtest.ErrInjected) {
			t.Errorf("change %d refused: %v", k, err)
		}
		w.checkEmpty()
	}
}

// Block images in a VM: disks, then the volume, then the scratch, then the union filter.
func TestXenonCIM(t *testing.T) {
	w := newWorld(t, vmm.Windows, vmmtest.WindowsLimits(), 0)
	r := cimRequest(w)
	m := w.mustMount(r)
	var cims vmm.BlockCIMs
	var combined vmm.CombinedLayers
	for _, c := range w.f.Log() {
		switch g := c.Mount.(type) {
		case vmm.BlockCIMs:
			cims = g
		case vmm.CombinedLayers:
			combined = g
		}
	}
	want := []vmm.BlockCIM{{Name: "merged.cim", LUN: 1}, {Name: "top.cim", LUN: 2}, {Name: "base.cim", LUN: 3}}
	if diff := cmp.Diff(want, cims.CIMs); diff != "" || cims.MountFlags != 0x10 {
		t.Errorf("block CIMs: flags %#x\n%s", cims.MountFlags, diff)
	}
	if combined.Filter != "UnionFS" || len(combined.Layers) != 1 || combined.Layers[0].ID != cims.VolumeGUID {
		t.Errorf("combined: %+v", combined)
	}
	if err := m.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.checkEmpty()
}
