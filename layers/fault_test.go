package layers

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// scenario is a system whose mount and unmount are swept with faults.
type scenario struct {
	name   string
	os     vmm.OS
	limits func() vmm.Limits
	layers int
	shared bool // another container has the layers already
	nic    bool // the container has a network
	links  int  // of a network namespace that the container has
	volume bool // the container has a folder and a file of the host
	folder bool // the root is a folder of the host
	disk   bool // the root is a disk
	whole  bool // the scratch is written to as a whole
}

func scenarios() []scenario {
	noPMEM := func() vmm.Limits { l := vmmtest.LinuxLimits(); l.VPMEMDevices = 0; return l }
	retained := func() vmm.Limits { l := vmmtest.LinuxLimits(); l.VPMEMRetained = true; return l }
	blind := func() vmm.Limits { l := vmmtest.LinuxLimits(); l.Observes = false; return l }
	trees := func() vmm.Limits { l := vmmtest.LinuxLimits(); l.LayerFolders = true; return l }
	var out []scenario
	for _, s := range []scenario{
		{name: "lcow-vpmem", os: vmm.Linux, limits: vmmtest.LinuxLimits},
		{name: "lcow-retained", os: vmm.Linux, limits: retained},
		{name: "lcow-scsi", os: vmm.Linux, limits: noPMEM},
		{name: "lcow-network", os: vmm.Linux, limits: vmmtest.LinuxLimits, nic: true},
		{name: "lcow-namespace", os: vmm.Linux, limits: vmmtest.LinuxLimits, links: 2},
		{name: "lcow-volume", os: vmm.Linux, limits: vmmtest.LinuxLimits, volume: true},
		{name: "lcow-folder", os: vmm.Linux, limits: vmmtest.LinuxLimits, folder: true, volume: true},
		{name: "lcow-disk", os: vmm.Linux, limits: vmmtest.LinuxLimits, disk: true, volume: true},
		{name: "lcow-whole", os: vmm.Linux, limits: vmmtest.LinuxLimits, whole: true},
		{name: "lcow-blind", os: vmm.Linux, limits: blind},
		{name: "lcow-trees", os: vmm.Linux, limits: trees},
		{name: "wcow", os: vmm.Windows, limits: vmmtest.WindowsLimits},
	} {
		if s.name == "lcow-trees" && runtime.GOOS != "linux" {
			continue
		}
		for _, n := range []int{1, 3} {
			if (s.folder || s.disk) && n > 1 {
				continue
			}
			for _, shared := range []bool{false, true} {
				s.layers, s.shared = n, shared
				out = append(out, s)
			}
		}
	}
	return out
}

func (s scenario) String() string {
	with := ""
	if s.shared {
		with = "-shared"
	}
	return fmt.Sprintf("%s-%dlayers%s", s.name, s.layers, with)
}

func (s scenario) world(t *testing.T) (*world, *Mounted) {
	w := sweepWorld(t, s.os, s.limits(), s.layers)
	if s.nic {
		w.network = &uvm.Network{Ports: []vmm.PortForward{{Protocol: "tcp", HostPort: 80, GuestPort: 80}}}
	}
	if s.links > 0 {
		w.network = &uvm.Network{Namespace: "/run/netns/n"}
	}
	for n := range s.links {
		w.network.Links = append(w.network.Links, vmm.Link{Name: fmt.Sprintf("net%d", n), MAC: "02:00:00:00:00:01"})
	}
	w.rootFolder, w.rootDisk, w.wholeScratch = s.folder, s.disk, s.whole
	if s.volume {
		w.volumes = []Volume{{Path: w.layers[0].Folder}, {Path: filepath.Join(w.layers[0].Folder, layerVHD), ReadOnly: true}}
	}
	if !s.shared {
		return w, nil
	}
	return w, w.mustMount(w.request("other", w.layers))
}

// finish releases what other containers hold and checks that the world is empty but for devices
// that cannot be removed while the VM runs.
func (s scenario) finish(w *world, other *Mounted) {
	w.t.Helper()
	if other != nil {
		if err := other.Release(w.t.Context()); err != nil {
			w.t.Errorf("release the other container: %v", err)
		}
	}
	if err := w.vm.Recover(w.t.Context()); err != nil {
		w.t.Errorf("recover: %v", err)
	}
	if st := w.vm.Status(); !st.Empty() {
		w.t.Errorf("left in the ledger: %+v", st)
	}
	for _, left := range w.f.Leftovers() {
		if !w.f.Limits().VPMEMRetained || !strings.HasPrefix(left, "vpmem") {
			w.t.Errorf("left in the machine: %s", left)
		}
	}
	if v := w.f.Violations(); len(v) > 0 {
		w.t.Errorf("rules of the world broken: %q", v)
	}
}

// TestSingleFaultMount fails each Change of a mount in every way.
func TestSingleFaultMount(t *testing.T) {
	for _, s := range scenarios() {
		for _, fault := range vmmtest.Faults() {
			t.Run(fmt.Sprintf("%s/%s", s, fault), func(t *testing.T) {
				for k := 1; ; k++ {
					if !sweepMount(t, s, fault, k) {
						return
					}
				}
			})
		}
	}
}

// sweepMount fails the k-th Change of a mount. It reports whether there was one.
func sweepMount(t *testing.T, s scenario, fault vmmtest.Fault, k int) bool {
	w, other := s.world(t)
	m, err := Mount(w.failNth(k, fault), w.request("a", w.layers))
	if err == nil && len(w.f.Log()) < k {
		w.f.Script(nil)
		if err := m.Release(t.Context()); err != nil {
			t.Errorf("release: %v", err)
		}
		s.finish(w, other)
		return false
	}
	if err == nil {
		t.Fatalf("change %d failed and Mount did not say so: %q", k, w.f.Log())
	}
	checkCause(t, fault, err)
	w.f.Script(nil)
	if fault != vmmtest.MachineGone {
		// The same container can be mounted at once.
		again, err := Mount(t.Context(), w.request("a", w.layers))
		if err != nil {
			t.Fatalf("mount after a failure at change %d: %v", k, err)
		}
		if err := again.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s.finish(w, other)
	return true
}

// TestSingleFaultUnmount fails each Change of an unmount in every way, and releases again.
func TestSingleFaultUnmount(t *testing.T) {
	for _, s := range scenarios() {
		for _, fault := range vmmtest.Faults() {
			t.Run(fmt.Sprintf("%s/%s", s, fault), func(t *testing.T) {
				for k := 1; ; k++ {
					w, other := s.world(t)
					m := w.mustMount(w.request("a", w.layers))
					err := m.Release(w.failNth(k, fault))
					last := len(w.f.Log()) < k
					w.f.Script(nil)
					switch {
					case last && err != nil:
						t.Fatalf("no fault, and Release: %v", err)
					case fault == vmmtest.MachineGone && err != nil:
						t.Fatalf("a VM that is gone counts as released: %v", err)
					case !last && fault != vmmtest.MachineGone && err == nil:
						t.Fatalf("change %d failed and Release did not say so", k)
					case err != nil:
						checkCause(t, fault, err)
					}
					for range 2 { // retried, and idempotent
						if err := m.Release(t.Context()); err != nil {
							t.Fatalf("release again after a failure at change %d: %v", k, err)
						}
					}
					s.finish(w, other)
					if last {
						return
					}
				}
			})
		}
	}
}

// TestPairsOfFaults fails two Changes of a mount and of the undoing that follows. What could not be
// undone must be found and taken away by the next process that opens the VM.
func TestPairsOfFaults(t *testing.T) {
	faults := []vmmtest.Fault{vmmtest.RefuseFirst, vmmtest.RefuseSecond, vmmtest.AfterEffect}
	for _, s := range scenarios() {
		if s.shared || s.layers == 1 {
			continue
		}
		t.Run(s.String(), func(t *testing.T) {
			for _, f1 := range faults {
				for _, f2 := range faults {
					for k := 1; k <= 6; k++ {
						for gap := 1; gap <= 6; gap++ {
							w, _ := s.world(t)
							w.f.Script(func(n int, _ vmm.Change) vmmtest.Fault {
								switch n {
								case k:
									return f1
								case k + gap:
									return f2
								}
								return vmmtest.NoFault
							})
							m, err := Mount(t.Context(), w.request("a", w.layers))
							if err == nil { // the faults lie behind the mount: they hit the release
								_ = m.Release(t.Context())
							}
							w.f.Script(nil)
							if err := w.vm.Close(); err != nil {
								t.Fatal(err)
							}
							w.open()
							if m, err := Open(w.vm, "a"); err == nil {
								if err := m.Release(t.Context()); err != nil {
									t.Fatal(err)
								}
							}
							s.finish(w, nil)
						}
					}
				}
			}
		})
	}
}

// TestCrashSweep stops our process (the VM runs on) before and after each Change of a mount and of an
// unmount. Whoever opens the VM next finds the container whole, or nothing of it.
func TestCrashSweep(t *testing.T) {
	for _, s := range scenarios() {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/after=%t", s, after), func(t *testing.T) {
				for k := 1; k <= 12; k++ {
					crashAt(t, s, k, after)
				}
			})
		}
	}
}

func crashAt(t *testing.T, s scenario, k int, after bool) {
	w, other := s.world(t)
	fault := vmmtest.HangBefore
	if after {
		fault = vmmtest.HangAfter
	}
	// A process that died makes no calls: every call from the k-th on hangs until the very end.
	ctx, die := context.WithCancel(t.Context())
	w.f.Script(func(n int, _ vmm.Change) vmmtest.Fault {
		switch {
		case n < k:
			return vmmtest.NoFault
		case n == k:
			time.AfterFunc(0, func() { _ = w.vm.Close(); die() }) // a dead process writes no journal
			return fault
		}
		return vmmtest.RefuseFirst
	})
	m, err := Mount(ctx, w.request("a", w.layers))
	if err == nil {
		_ = m.Release(ctx)
	}
	die()
	_ = w.vm.Close()
	w.f.Script(nil)
	w.open()
	if m, err := Open(w.vm, "a"); err == nil {
		if p := w.vm.Claims(); len(p) == 0 || m.Root == "" {
			t.Fatalf("crash at change %d left half a container: %+v", k, w.vm.Status())
		}
		if err := m.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if other != nil {
		if other, err = Open(w.vm, "other"); err != nil {
			t.Fatal(err)
		}
	}
	s.finish(w, other)
}

// failNth makes the n-th Change from now on fail. The context that it gives ends when a Change hangs.
func (w *world) failNth(n int, fault vmmtest.Fault) context.Context {
	ctx, cancel := context.WithCancel(w.t.Context())
	w.t.Cleanup(cancel)
	w.f.Script(func(i int, _ vmm.Change) vmmtest.Fault {
		if i != n {
			return vmmtest.NoFault
		}
		if fault == vmmtest.HangBefore || fault == vmmtest.HangAfter {
			time.AfterFunc(time.Millisecond, cancel)
		}
		return fault
	})
	return ctx
}

func checkCause(t *testing.T, fault vmmtest.Fault, err error) {
	t.Helper()
	want := vmmtest.ErrInjected
	switch fault {
	case vmmtest.HangBefore, vmmtest.HangAfter:
		want = context.Canceled
	case vmmtest.MachineGone:
		want = vmm.ErrGone
	}
	if !errors.Is(err, want) {
		t.Errorf("error %v does not match %v", err, want)
	}
	if !strings.Contains(err.Error(), `container "a"`) {
		t.Errorf("error %v does not name the container", err)
	}
}
