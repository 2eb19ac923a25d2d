package layers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// hcsWorld is a VM of the Host Compute Service in memory, with its rules in force.
type hcsWorld struct {
	*replay
	vm      *uvm.UtilityVM
	folders []string
	root    string
	cim     *wclayer.CIMMount
}

// newHCSWorld starts the VM. reach, when given, puts something between it and the service.
func newHCSWorld(t *testing.T, os vmm.OS, external bool, count int, reach ...func(*replay)) *hcsWorld {
	t.Helper()
	s := &scenario{OSBuild: 19041, Processors: 4, head: true}
	add := func(path string) { s.Files = append(s.Files, fixture{Path: path, Kind: "file", Size: 4096}) }
	w := &hcsWorld{root: "/run/gcs/c/a"}
	st := step{Op: "CreateLCOW", UVM: "vm"}
	var options any
	if os == vmm.Windows {
		st.Op, w.root = "CreateWCOW", `C:\c\a`
		add(`C:\base\UtilityVM\Files\x`)
		add(`C:\uvm\sandbox.vhdx`)
		o := hcs.DefaultWCOW("vm", "test", []string{`C:\base`, `C:\uvm`})
		o.ExternalGuestConnection, o.KeepDirectMappedShares = external, false
		options = o
	} else {
		add(`C:\boot\kernel`)
		add(`C:\boot\initrd.img`)
		o := hcs.DefaultLCOW("vm", "test", `C:\boot`, s.OSBuild)
		o.ExternalGuestConnection = external
		options = o
	}
	for i := range count {
		folder := fmt.Sprintf(`C:\layers\l%d`, i)
		add(folder + `\layer.vhd`)
		w.folders = append(w.folders, folder)
	}
	add(`C:\scratch\sandbox.vhdx`)
	w.folders = append(w.folders, `C:\scratch`)
	raw, err := json.Marshal(options)
	if err != nil {
		t.Fatal(err)
	}
	st.Inputs.Options = raw
	w.replay = newStrictReplay(t, s)
	for _, f := range reach {
		f(w.replay)
	}
	if _, err := w.create(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	w.vm = w.vms["vm"]
	t.Cleanup(func() {
		if err := w.vm.Close(); err != nil {
			t.Error(err)
		}
		w.calls.Wait()
	})
	if err := w.vm.Machine().(*hcs.Machine).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, f := range w.folders[:count] {
		if err := w.mounter.Host.GrantVMGroupAccess(t.Context(), f+`\layer.vhd`); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *hcsWorld) mount(ctx context.Context) error {
	if w.cim != nil {
		_, err := layers.Mount(ctx, layers.Request{VM: w.vm, ID: "a", CIM: w.cim, Scratch: w.folders[0]}.WithNames(w.files))
		return err
	}
	_, err := w.mounter.MountContainerLayers(ctx, w.folders, w.root, w.vm)
	return err
}

func (w *hcsWorld) unmount(ctx context.Context) error {
	return w.mounter.UnmountContainerLayers(ctx, w.folders, w.root, w.vm, layers.UnmountOperationAll)
}

// acts are the functions that change something; faults hit only these.
func acts(fn string) bool {
	return fn == "HcsModifyComputeSystem" || fn == "(guest) ModifySettings" || fn == "GrantVmAccess"
}

// hcsFaults are the ways in which a call fails. cancel ends the caller's context.
var hcsFaults = map[string]func(cancel func()) hcstest.Verdict{
	"refused":            func(func()) hcstest.Verdict { return hcstest.Verdict{HR: 0x80070005} },
	"timed out":          func(func()) hcstest.Verdict { return hcstest.Verdict{HR: 0xC0370109} },
	"error after effect": func(func()) hcstest.Verdict { return hcstest.Verdict{HR: 0xC0370109, AfterEffect: true} },
	"hang": func(cancel func()) hcstest.Verdict {
		return hcstest.Verdict{Before: later(cancel)}
	},
	"hang after effect": func(cancel func()) hcstest.Verdict {
		return hcstest.Verdict{After: later(cancel)}
	},
	"machine gone": func(func()) hcstest.Verdict { return hcstest.Verdict{Kill: true} },
}

// later cancels the caller and comes to rest somewhat after it has gone.
func later(cancel func()) <-chan struct{} {
	ch := make(chan struct{})
	cancel()
	time.AfterFunc(time.Millisecond, func() { close(ch) })
	return ch
}

// TestHCSFaultSweep fails every call of a mount and an unmount in every way. Afterwards a retry ends
// well, or the machine is gone, and in no case is anything left.
func TestHCSFaultSweep(t *testing.T) {
	for kind, external := range map[string]bool{"internal": false, "external": true} {
		for _, os := range []vmm.OS{vmm.Linux, vmm.Windows} {
			for _, count := range []int{1, 3} {
				sweepHCS(t, fmt.Sprintf("%s %s %d layers", os, kind, count), func(t *testing.T) *hcsWorld {
					return newHCSWorld(t, os, external, count)
				})
			}
		}
		sweepHCS(t, "windows "+kind+" block CIMs", func(t *testing.T) *hcsWorld { return newCIMWorld(t, external) })
	}
}

func sweepHCS(t *testing.T, name string, world func(*testing.T) *hcsWorld) {
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		total := cleanRun(t, world(t))
		for name, fault := range hcsFaults {
			for k := 1; k <= total; k++ {
				t.Run(fmt.Sprintf("call %d %s", k, name), func(t *testing.T) { sweepOne(t, world(t), k, fault) })
			}
		}
	})
}

// TestHCSLayerOfNobody: a VM cannot have a layer that it was not granted, which is done when layers are
// made and not for each mount; a scratch is granted to the VM by the mount.
func TestHCSLayerOfNobody(t *testing.T) {
	w := newHCSWorld(t, vmm.Linux, false, 1)
	foreign := `C:\layers\foreign`
	w.files.put(fixture{Path: foreign + `\layer.vhd`, Kind: "file", Size: 4096})
	own := w.folders
	w.folders = append([]string{foreign}, own...)
	if err := w.mount(t.Context()); !errors.Is(err, vmm.ErrAccessDenied) {
		t.Errorf("error %v", err)
	}
	if left := w.service.Leftovers(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	w.folders = own
	if err := errors.Join(w.mount(t.Context()), w.unmount(t.Context())); err != nil {
		t.Error(err)
	}
}

// cleanRun counts the calls of a mount and an unmount where nothing fails.
func cleanRun(t *testing.T, w *hcsWorld) (total int) {
	w.service.Script(func(fn string, _ int, _ map[string]any) hcstest.Verdict {
		if acts(fn) {
			total++
		}
		return hcstest.Verdict{}
	})
	if err := errors.Join(w.mount(t.Context()), w.unmount(t.Context())); err != nil {
		t.Fatal(err)
	}
	if left := w.service.Leftovers(); len(left) != 0 || total == 0 {
		t.Fatalf("%d calls, left: %v", total, left)
	}
	w.service.Script(nil)
	return total
}

func sweepOne(t *testing.T, w *hcsWorld, k int, fault func(func()) hcstest.Verdict) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	var killed atomic.Bool
	w.service.Script(func(fn string, _ int, _ map[string]any) hcstest.Verdict {
		if !acts(fn) {
			return hcstest.Verdict{}
		}
		if n++; n != k {
			return hcstest.Verdict{}
		}
		v := fault(cancel)
		killed.Store(v.Kill && fn != "GrantVmAccess") // which is about a file
		return v
	})
	mounted := w.mount(ctx)
	var unmounted error
	if mounted == nil {
		unmounted = w.unmount(ctx)
	}
	gone := killed.Load()
	if gone {
		<-w.vm.Machine().Done() // the service tells of the exit on its own time
	}
	if mounted == nil && unmounted == nil && n >= k && !gone {
		t.Log("the fault was overcome at once")
	}
	w.service.Script(nil)
	if gone {
		if mounted == nil && unmounted != nil { // when that came before it was told of the exit
			unmounted = w.unmount(t.Context())
		}
		if mounted == nil && unmounted != nil {
			t.Errorf("unmount from a machine that is gone: %v", unmounted)
		}
		return
	}
	if mounted != nil {
		// A failed mount has taken back what it did.
		if left := w.service.Leftovers(); len(left) != 0 {
			t.Errorf("after the failed mount (%v): %v", mounted, left)
		}
		if err := w.mount(t.Context()); err != nil {
			t.Fatalf("the second mount: %v", err)
		}
		unmounted = errors.New("not yet")
	}
	if unmounted != nil {
		if err := w.unmount(t.Context()); err != nil {
			t.Fatalf("the second unmount: %v (the first: %v)", err, unmounted)
		}
	}
	if left := w.service.Leftovers(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
