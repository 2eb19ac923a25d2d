package uvm

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// TestReleasedClaimTakesNothing: a mount that goes on after its container was unmounted gets nothing and
// cannot make the container whole again.
func TestReleasedClaimTakesNothing(t *testing.T) {
	f, vm := newLinux(t)
	c := mustClaim(t, vm, "a")
	mustAttach(t, vm, c, disk("/l/1"))
	if err := mustFind(t, vm, "a").Release(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.SCSI().Attach(t.Context(), c, "layer", disk("/l/2")); !errors.Is(err, ErrUnknownClaim) {
		t.Errorf("attach for a released container: %v", err)
	}
	if err := c.Commit(nil); !errors.Is(err, ErrUnknownClaim) {
		t.Errorf("commit of a released container: %v", err)
	}
	checkEmpty(t, f, vm)
}

// TestPartOfWhatIsToGo: releasing a part of a container whose whole release failed does not make it one
// that is to stay.
func TestPartOfWhatIsToGo(t *testing.T) {
	f, vm := newLinux(t)
	c := mustClaim(t, vm, "a")
	le := mustAttach(t, vm, c, disk("/l/1"))
	mustAttach(t, vm, c, disk("/l/2"))
	if err := c.Commit(nil); err != nil {
		t.Fatal(err)
	}
	f.FailNth(2, vmmtest.RefuseFirst)
	if err := c.Release(t.Context(), nil); !errors.Is(err, vmmtest.ErrInjected) {
		t.Fatal(err)
	}
	if err := c.Release(t.Context(), []*Lease{le}[:0]); err != nil {
		t.Fatal(err)
	}
	if p := c.Phase(); p != Releasing {
		t.Errorf("the container is %s", p)
	}
	if err := vm.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, f, vm)
}

// TestLostContainerIsForgotten: a container of which nothing is left in the machine does not keep its id.
func TestLostContainerIsForgotten(t *testing.T) {
	f, vm := newLinux(t)
	c := mustClaim(t, vm, "a")
	mustAttach(t, vm, c, disk("/l/1"))
	if err := c.Commit(nil); err != nil {
		t.Fatal(err)
	}
	dir := vm.Dir()
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	empty := vmmtest.New("vm", vmm.Linux, f.Limits())
	again := openFake(t, empty, dir)
	mustClaim(t, again, "a")
}

// TestStrays: what a guest finished after the process that asked for it had died is taken away with the
// disk below it.
func TestStrays(t *testing.T) {
	f := vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())
	dir := t.TempDir()
	vm := openFake(t, f, dir)
	mustAttach(t, vm, mustClaim(t, vm, "a"), Disk{Path: "/l/1", ReadOnly: true})
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	for _, g := range []vmm.Mount{vmm.MappedDisk{MountPath: "/run/mounts/m9", ReadOnly: true},
		vmm.CombinedLayers{RootPath: "/run/gcs/c/a/rootfs", Layers: []vmm.GuestLayer{{Path: "/run/mounts/m9"}}}} {
		if err := f.Apply(t.Context(), vmm.Change{Op: vmm.Add, Mount: g}); err != nil {
			t.Fatal(err)
		}
	}
	checkEmpty(t, f, openFake(t, f, dir))
}

// TestStaleJournal: where the journal cannot be rewritten after recovery nothing is added behind
// conclusions that it does not hold.
func TestStaleJournal(t *testing.T) {
	f, vm := newLinux(t)
	c := mustClaim(t, vm, "web")
	le := mustAttach(t, vm, c, disk("/l/1"))
	if err := c.Commit(nil); err != nil {
		t.Fatal(err)
	}
	dir := vm.Dir()
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	// The release was not written down.
	r := vmm.Change{Op: vmm.Remove, Device: vmm.SCSIDisk{}, Mount: vmm.MappedDisk{MountPath: le.GuestPath()}}
	if err := f.Apply(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	unblock := blockRewriting(t)
	vm = openFake(t, f, dir)
	if _, err := vm.Claim(t.Context(), "other", nil); err == nil {
		t.Fatal("a container was begun with a journal that does not tell the truth")
	}
	unblock()
	other := mustClaim(t, vm, "other")
	mustAttach(t, vm, other, disk("/l/1"))
	if err := other.Commit(nil); err != nil {
		t.Fatal(err)
	}
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	again := openFake(t, f, dir)
	if n := len(mustFind(t, again, "other").Leases()); n != 1 || len(f.Leftovers()) != 2 {
		t.Errorf("the container has %d leases, in the machine is %q", n, f.Leftovers())
	}
}

// TestOneGrace: all that is taken back for one call shares one grace.
func TestOneGrace(t *testing.T) {
	f := vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())
	synctest.Test(t, func(t *testing.T) {
		vm := openFake(t, f, "")
		c := mustClaim(t, vm, "a")
		mustAttach(t, vm, c, disk("/l/1"))
		f.Script(func(int, vmm.Change) vmmtest.Fault { return vmmtest.HangBefore })
		call, cancel := context.WithTimeout(WithRollbackBudget(t.Context()), time.Second)
		defer cancel()
		begin := time.Now()
		if _, err := vm.SCSI().Attach(call, c, "layer", disk("/l/2")); err == nil {
			t.Fatal("the attach succeeded")
		}
		grace, end := vm.RollbackContext(call)
		defer end()
		if err := c.Release(grace, nil); err == nil {
			t.Fatal("the release succeeded")
		}
		if took := time.Since(begin); took != time.Second+defaultUndo { // of the bubble's clock
			t.Errorf("giving up took %s", took)
		}
		f.Script(nil)
		if err := c.Release(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		checkEmpty(t, f, vm)
	})
}

// A removal whose caller's time ended when all of it was done is no failure: nothing is left to release again.
func TestRemovedAsTheCallerLeft(t *testing.T) {
	f, vm := newLinux(t)
	c := mustClaim(t, vm, "a")
	le := mustAttach(t, vm, c, disk("/l/1"))
	vm.l.machine = lateMachine{f}
	if err := le.Release(t.Context()); err != nil {
		t.Errorf("Release: %v", err)
	}
	if err := c.Release(t.Context(), nil); err != nil {
		t.Errorf("Claim.Release: %v", err)
	}
	checkEmpty(t, f, vm)
}

// lateMachine does what it is asked, and reports that the caller has gone meanwhile.
type lateMachine struct{ *vmmtest.Fake }

func (m lateMachine) Apply(ctx context.Context, c vmm.Change) error {
	if err := m.Fake.Apply(ctx, c); err != nil {
		return err
	}
	return &vmm.ApplyError{Change: c, Host: vmm.Done, Guest: vmm.Done, Err: context.Canceled}
}
