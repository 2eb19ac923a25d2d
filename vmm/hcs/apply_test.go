package hcs_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// ending returns what an ApplyError tells of the halves.
func ending(t *testing.T, err error) (host, guest vmm.Outcome) {
	t.Helper()
	e, ok := errors.AsType[*vmm.ApplyError](err)
	if !ok {
		t.Fatalf("%v is no ApplyError", err)
	}
	return e.Host, e.Guest
}

func TestAddingTwiceAndRemovingNothing(t *testing.T) {
	for name, external := range both {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, hcstest.Options{OldGuest: true})
			m := r.start(r.lcow(external))
			apply(t, m, disk(0))
			before := r.calls("HcsModifyComputeSystem")
			apply(t, m, disk(0)) // exactly what is there
			if n := r.calls("HcsModifyComputeSystem"); n != before {
				t.Errorf("adding what is there made %d calls", n-before)
			}
			other := disk(0)
			other.Device = vmm.SCSIDisk{Path: `C:\d\other.vhdx`}
			if err := m.Apply(t.Context(), other); !errors.Is(err, vmm.ErrOccupied) {
				t.Errorf("something else at the address: %v", err)
			}
			apply(t, m, disk(0).Inverse())
			apply(t, m, disk(0).Inverse()) // nothing is there any more
			apply(t, m, disk(5).Inverse()) // nothing ever was
			if left := r.s.Leftovers(); len(left) != 0 {
				t.Error(left)
			}
			if o, err := m.Observe(t.Context()); err != nil || len(o.Devices)+len(o.Mounts) != 0 {
				t.Errorf("%+v %v", o, err)
			}
		})
	}
}

// The guest refuses what the host has attached: the error says so, and the removal that takes it back
// repeats the settings of the addition.
func TestGuestRefusesOverExternalConnection(t *testing.T) {
	r := newRig(t, hcstest.Options{OldGuest: true})
	m := r.start(func() hcs.OptionsLCOW {
		o := r.lcow(true)
		o.GuestGeneration = hcs.Guest2021
		return o
	}())
	r.s.Step("add", hcstest.Injection{Function: "(guest) ModifySettings", Call: 1, HResult: "0x80004005"})
	err := m.Apply(t.Context(), disk(0))
	if host, guest := ending(t, err); host != vmm.Done || guest != vmm.NotDone {
		t.Errorf("host %v, guest %v: %v", host, guest, err)
	}
	if _, ok := errors.AsType[*gcs.Error](err); !ok || !strings.Contains(err.Error(), "the guest was told to fail") {
		t.Errorf("the guest's words are missing: %v", err)
	}
	r.s.Step("undo")
	apply(t, m, disk(0).Inverse().HostOnly())
	trace := r.s.Trace()
	last := trace[len(trace)-1]
	settings, _ := last.Args["configuration"].(map[string]any)["Settings"].(map[string]any)
	if last.Fn != "HcsModifyComputeSystem" || settings["Path"] != `C:\d\a.vhdx` {
		t.Errorf("%+v", last)
	}
	if left := r.s.Leftovers(); len(left) != 0 {
		t.Error(left)
	}
}

// Nobody can cancel a call into the service. The caller has its answer at once, a call at another
// address goes through, and one at the same address waits for the first to come to rest.
func TestAbandonedChange(t *testing.T) {
	for name, when := range map[string]func(ch chan struct{}) hcstest.Verdict{
		"before its effect": func(ch chan struct{}) hcstest.Verdict { return hcstest.Verdict{Before: ch} },
		"after its effect":  func(ch chan struct{}) hcstest.Verdict { return hcstest.Verdict{After: ch} },
	} {
		for kind, external := range both {
			t.Run(name+" "+kind, func(t *testing.T) {
				r := newRig(t, hcstest.Options{OldGuest: true})
				m := r.start(r.lcow(external))
				hold, reached := make(chan struct{}), make(chan struct{})
				r.s.Script(func(fn string, n int, _ map[string]any) hcstest.Verdict {
					if n != 1 {
						return hcstest.Verdict{}
					}
					close(reached)
					return when(hold)
				})
				ctx, cancel := within(t)
				go func() { <-reached; cancel() }()
				err := m.Apply(ctx, disk(0))
				host, guest := ending(t, err)
				if !errors.Is(err, context.Canceled) || host != vmm.Unknown {
					t.Errorf("host %v, guest %v: %v", host, guest, err)
				}
				apply(t, m, disk(1))

				short, stop := context.WithCancel(t.Context())
				waited := make(chan error)
				go func() { waited <- m.Apply(short, disk(0).Inverse()) }()
				stop()
				if err := <-waited; !errors.Is(err, context.Canceled) {
					t.Errorf("the second change did not wait: %v", err)
				}
				close(hold)
				apply(t, m, disk(0).Inverse())
				apply(t, m, disk(1).Inverse())
				if left := r.s.Leftovers(); len(left) != 0 {
					t.Error(left)
				}
			})
		}
	}
}

func TestMachineDies(t *testing.T) {
	for name, external := range both {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, hcstest.Options{OldGuest: true})
			m := r.start(r.lcow(external))
			apply(t, m, disk(0))
			hold := make(chan struct{})
			r.s.Script(func(fn string, n int, _ map[string]any) hcstest.Verdict {
				if n == 1 {
					return hcstest.Verdict{Before: hold}
				}
				return hcstest.Verdict{}
			})
			done := make(chan error)
			go func() { done <- m.Apply(t.Context(), disk(1)) }()
			r.s.Kill("vm")
			err := <-done
			close(hold)
			if !errors.Is(err, vmm.ErrGone) {
				t.Errorf("a call under way: %v", err)
			}
			<-m.Done()
			for what, err := range map[string]error{
				"err": m.Err(), "apply": m.Apply(t.Context(), disk(2)), "observe": errOf(m.Observe(t.Context())),
				"exec":   errOf(m.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"x"}})),
				"stacks": errOf(m.Stacks(t.Context())), "delete state": m.DeleteContainerState(t.Context(), "c"),
			} {
				if !errors.Is(err, vmm.ErrGone) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if err := m.Terminate(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func errOf[T any](_ T, err error) error { return err }

// A removal that is refused because the VM is stopping is no refusal: everything goes with it.
func TestRemovalFromDyingMachine(t *testing.T) {
	r := newRig(t, hcstest.Options{OldGuest: true})
	m := r.startWCOW(false)
	share := vmm.Change{Op: vmm.Add, Device: vmm.VSMBShare{Name: "s1", Path: `C:\l`}}
	apply(t, m, share)
	r.s.Step("dying", hcstest.Injection{Function: "HcsModifyComputeSystem", Call: 1, HResult: "0x8007139f"})
	// The VM stops without telling.
	r.s.Script(func(fn string, _ int, _ map[string]any) hcstest.Verdict {
		if fn == "HcsGetComputeSystemProperties" {
			return hcstest.Verdict{HR: 0xC037010E}
		}
		return hcstest.Verdict{}
	})
	err := m.Apply(t.Context(), share.Inverse())
	if !errors.Is(err, vmm.ErrGone) {
		t.Errorf("%v", err)
	}
	<-m.Done()
}

func TestRefusalStaysRefusal(t *testing.T) {
	r := newRig(t, hcstest.Options{OldGuest: true})
	m := r.startWCOW(false)
	share := vmm.Change{Op: vmm.Add, Device: vmm.VSMBShare{Name: "s1", Path: `C:\l`}}
	apply(t, m, share)
	r.s.Step("refused", hcstest.Injection{Function: "HcsModifyComputeSystem", Call: 1, HResult: "0xc0370105"})
	err := m.Apply(t.Context(), share.Inverse())
	if host, _ := ending(t, err); errors.Is(err, vmm.ErrGone) || host != vmm.NotDone {
		t.Errorf("host %v: %v", host, err)
	}
	apply(t, m, share.Inverse())
}

// A guest of 2021 unplugs on unmount and knows no SCSIDevice; later ones need it. Probing finds out.
func TestEject(t *testing.T) {
	for _, c := range []struct {
		name       string
		old        bool
		generation hcs.GuestGeneration
		ejects     int // of two removals
		probed     bool
	}{
		{"probe finds an old guest", true, hcs.GuestProbe, 1, true},
		{"probe finds a guest of today", false, hcs.GuestProbe, 2, false},
		{"told of an old guest", true, hcs.Guest2021, 0, false},
		{"an old guest was found earlier", true, hcs.GuestUnplugs, 0, false},
		{"told of a guest of today", false, hcs.GuestCurrent, 2, false},
	} {
		for kind, external := range both {
			t.Run(c.name+" "+kind, func(t *testing.T) {
				r := newRig(t, hcstest.Options{OldGuest: c.old})
				probed := false
				r.host.Probed = func(g hcs.GuestGeneration) { probed = g == hcs.GuestUnplugs }
				o := r.lcow(external)
				o.GuestGeneration = c.generation
				m := r.start(o)
				for range 2 {
					apply(t, m, disk(0))
					apply(t, m, disk(0).Inverse())
				}
				n := 0
				for _, call := range r.s.Trace() {
					for _, key := range []string{"configuration", "Request"} {
						request, _ := call.Args[key].(map[string]any)
						if inner, ok := request["GuestRequest"].(map[string]any); ok {
							request = inner
						}
						if request["ResourceType"] == "SCSIDevice" {
							n++
						}
					}
				}
				if n != c.ejects || probed != c.probed {
					t.Errorf("%d requests to eject, want %d; probed: %v", n, c.ejects, probed)
				}
				if left := r.s.Leftovers(); len(left) != 0 {
					t.Error(left)
				}
			})
		}
	}
}

// What an old guest would silently drop is refused before anything is done.
func TestOldGuestIsNotAskedForWhatItDrops(t *testing.T) {
	r := newRig(t, hcstest.Options{OldGuest: true})
	o := r.lcow(false)
	o.GuestGeneration = hcs.Guest2021
	m := r.start(o)
	before := len(r.s.Trace())
	for name, g := range map[string]vmm.Mount{
		"partition":  vmm.MappedDisk{MountPath: "/m", Partition: 1},
		"block":      vmm.MappedDisk{MountPath: "/m", BlockDev: true},
		"encrypted":  vmm.MappedDisk{MountPath: "/m", Encrypted: true},
		"verity":     vmm.MappedDisk{MountPath: "/m", Verity: &vmm.Verity{}},
		"window":     vmm.MappedPMEM{MountPath: "/m", Size: 4096},
		"pmemverity": vmm.MappedPMEM{MountPath: "/m", Verity: &vmm.Verity{}},
		"cims":       vmm.BlockCIMs{VolumeGUID: "g"},
	} {
		err := m.Apply(t.Context(), vmm.Change{Op: vmm.Add, Mount: g})
		if err == nil {
			t.Errorf("%s is accepted", name)
			continue
		}
		if host, guest := ending(t, err); host != vmm.NotDone || guest != vmm.NotDone {
			t.Errorf("%s: host %v, guest %v", name, host, guest)
		}
	}
	if after := len(r.s.Trace()); after != before {
		t.Errorf("%d calls were made", after-before)
	}
}

func TestImpossibleDevices(t *testing.T) {
	r := newRig(t, hcstest.Options{OldGuest: true})
	m := r.start(r.lcow(false))
	for name, d := range map[string]vmm.Device{
		"composite":  vmm.SCSIDisk{Path: `C:\a`, Extents: []vmm.Extent{{Length: 512}}},
		"raw":        vmm.SCSIDisk{Path: `C:\a.img`, Format: vmm.FormatRaw},
		"no path":    vmm.SCSIDisk{},
		"evd":        vmm.SCSIDisk{Path: `C:\a`, Kind: vmm.ExtensibleVirtualDisk},
		"controller": vmm.SCSIDisk{Path: `C:\a`, Controller: 1},
		"lun":        vmm.SCSIDisk{Path: `C:\a`, LUN: 64},
		"slot":       vmm.VPMEMDevice{Path: `C:\a`, Slot: 64},
	} {
		if err := m.Apply(t.Context(), vmm.Change{Op: vmm.Add, Device: d}); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if err := m.Apply(t.Context(), vmm.Change{Op: vmm.Add}); err == nil {
		t.Error("an empty change is accepted")
	}
	w := newRig(t, hcstest.Options{}).startWCOW(false)
	scratch := vmm.Change{Op: vmm.Add, Device: vmm.SCSIDisk{Path: `C:\a.vhdx`}}
	if err := w.Apply(t.Context(), scratch); !errors.Is(err, vmm.ErrOccupied) {
		t.Errorf("the slot of the VM's own scratch: %v", err)
	}
}

// Access is granted before the disk is attached; without the grant nothing is.
func TestGrant(t *testing.T) {
	r := newRig(t, hcstest.Options{OldGuest: true})
	m := r.start(r.lcow(false))
	c := disk(0)
	d := c.Device.(vmm.SCSIDisk)
	d.Access = vmm.AccessIndividual
	c.Device = d
	r.s.Step("refused", hcstest.Injection{Function: "GrantVmAccess", Call: 1, HResult: "0x80070005"})
	before := r.calls("HcsModifyComputeSystem")
	err := m.Apply(t.Context(), c)
	if host, guest := ending(t, err); host != vmm.NotDone || guest != vmm.NotDone ||
		!strings.Contains(err.Error(), d.Path) {
		t.Errorf("host %v, guest %v: %v", host, guest, err)
	}
	if n := r.calls("HcsModifyComputeSystem"); n != before {
		t.Error("the disk was attached without access")
	}
	apply(t, m, c)
	d.Access = vmm.AccessGroup
	d.LUN = 9
	if err := m.Apply(t.Context(), vmm.Change{Op: vmm.Add, Device: d}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a host that cannot grant to the group: %v", err)
	}
}
