package layers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/Microsoft/go-winio/pkg/guid"
	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/vmm"
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

func argonRequest(h *fakeHost, cim bool) Request {
	r := Request{ID: "a", Scratch: `C:\c\a`, Host: h}
	if cim {
		r.CIM = &wclayer.CIMMount{Image: wclayer.CIM{Dir: `C:\cims`, Name: "top.cim"}}
	} else {
		r.Layers = []Layer{{Folder: `C:\l\top`}, {Folder: `C:\l\base`}}
	}
	return r
}

func TestArgonOrder(t *testing.T) {
	volume, err := wclayer.CIMVolume("a")
	if err != nil {
		t.Fatal(err)
	}
	for cim, want := range map[bool][]string{
		false: {"activate", `prepare C:\l\top,C:\l\base`, "path", "unprepare", "deactivate"},
		true: {"mount top.cim", "activate", "path", `overlay \\?\Volume{` + volume.String() + `}\Files`,
			"no overlay", "deactivate", "dismount"},
	} {
		h := &fakeHost{}
		m, err := Mount(t.Context(), argonRequest(h, cim))
		if err != nil {
			t.Fatal(err)
		}
		if m.Root != `\\?\Volume{1}\` {
			t.Errorf("root %s", m.Root)
		}
		if err := m.release(t.Context(), UnmountOperationSCSI); !errors.Is(err, ErrInvalid) {
			t.Errorf("partial unmount: %v", err)
		}
		for range 2 {
			if err := m.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(want, h.calls); diff != "" {
			t.Errorf("cim=%t (-want +got):\n%s", cim, diff)
		}
	}
}

// Every call fails once, in mount and in unmount: nothing stays on, and every half of an unmount is
// attempted whatever becomes of the other.
func TestArgonFaults(t *testing.T) {
	for _, cim := range []bool{false, true} {
		for k := 1; ; k++ {
			h := &fakeHost{fail: k}
			m, err := Mount(t.Context(), argonRequest(h, cim))
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
			if len(h.on) > 0 {
				t.Errorf("call %d failed and this stayed on: %v", k, h.on)
			}
		}
	}
}

func TestArgonUnmountByFolders(t *testing.T) {
	h := &fakeHost{}
	mt := Mounter{Host: h}
	folders := []string{`C:\l\base`, `C:\c\a`}
	if _, err := mt.MountContainerLayers(t.Context(), folders, "", nil); err != nil {
		t.Fatal(err)
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
