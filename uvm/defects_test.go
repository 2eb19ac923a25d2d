package uvm

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// The tests named Defect… are the faults found in the bookkeeping of others, by their letters.

// A: the guest mount fails once after a successful attach. Nothing may be left, and the next try and
// its release work.
func TestDefectA_GuestMountFailsAfterAttach(t *testing.T) {
	f, vm := newLinux(t)
	c := mustClaim(t, vm, "a")
	f.FailNth(1, vmmtest.RefuseSecond)
	if _, err := vm.SCSI().Attach(t.Context(), c, "layer", disk("/l/1")); !errors.Is(err, vmmtest.ErrInjected) {
		t.Fatalf("Attach: %v", err)
	}
	if left := f.Leftovers(); len(left) > 0 {
		t.Fatalf("left: %q", left)
	}
	if err := mustAttach(t, vm, c, disk("/l/1")).Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Release(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, f, vm)
}

// B: reserve, then give up without mapping. Here a reservation is given up when the change cannot
// even begin; far more cycles than there are slots must not use any up.
func TestDefectB_ReservationGivenUp(t *testing.T) {
	f, vm := newLinux(t)
	c := mustClaim(t, vm, "a")
	f.Script(func(int, vmm.Change) vmmtest.Fault { return vmmtest.RefuseFirst })
	for i := range 4*64 + 1 {
		if _, err := vm.SCSI().Attach(t.Context(), c, "layer", disk("/l/1")); !errors.Is(err, vmmtest.ErrInjected) {
			t.Fatalf("cycle %d: %v", i, err)
		}
	}
	f.Script(nil)
	if le := mustAttach(t, vm, c, disk("/l/1")); le.Addr() != "scsi 0:0" {
		t.Errorf("slot %s after slots were given back, want scsi 0:0", le.Addr())
	}
}

// C: the guest unmount fails once. The lease is not spent: releasing it again works.
func TestDefectC_UnmountBusyOnce(t *testing.T) {
	f, vm := newLinux(t)
	c := mustClaim(t, vm, "a")
	le := mustAttach(t, vm, c, disk("/l/1"))
	f.FailNth(1, vmmtest.RefuseFirst)
	if err := le.Release(t.Context()); !errors.Is(err, vmmtest.ErrInjected) {
		t.Fatalf("Release: %v", err)
	}
	if len(f.Leftovers()) != 2 {
		t.Fatalf("after a refused unmount the machine holds %q", f.Leftovers())
	}
	for range 2 {
		if err := le.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Release(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, f, vm)
}

// D: a waiter on an attach in flight is cancelled. Its reference must not stay.
func TestDefectD_WaiterCancelled(t *testing.T) {
	f := vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())
	synctest.Test(t, func(t *testing.T) {
		vm := openFake(t, f, "")
		a, b := mustClaim(t, vm, "a"), mustClaim(t, vm, "b")
		f.FailNth(1, vmmtest.HangAfter)
		first, cancelFirst := context.WithCancel(t.Context())
		second, cancelSecond := context.WithCancel(t.Context())
		results := make(chan error, 2)
		go func() {
			_, err := vm.SCSI().Attach(first, a, "layer", disk("/l/1"))
			results <- err
		}()
		synctest.Wait()
		go func() {
			_, err := vm.SCSI().Attach(second, b, "layer", disk("/l/1"))
			results <- err
		}()
		synctest.Wait()
		cancelSecond()
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled waiter: %v", err)
		}
		if len(b.Leases()) != 0 {
			t.Errorf("the waiter left %v", b.Leases())
		}
		cancelFirst()
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled attach: %v", err)
		}
		for _, c := range []*Claim{a, b} {
			if err := c.Release(t.Context(), nil); err != nil {
				t.Error(err)
			}
		}
		checkEmpty(t, f, vm)
	})
}

// A second user waits for the first, and does not see the first one's failure.
func TestWaiterTriesItself(t *testing.T) {
	f := vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())
	synctest.Test(t, func(t *testing.T) {
		vm := openFake(t, f, "")
		a, b := mustClaim(t, vm, "a"), mustClaim(t, vm, "b")
		f.FailNth(1, vmmtest.HangBefore)
		first, cancel := context.WithCancel(t.Context())
		failed, worked := make(chan error), make(chan error)
		go func() {
			_, err := vm.SCSI().Attach(first, a, "layer", disk("/l/1"))
			failed <- err
		}()
		synctest.Wait()
		go func() {
			_, err := vm.SCSI().Attach(t.Context(), b, "layer", disk("/l/1"))
			worked <- err
		}()
		synctest.Wait()
		select {
		case err := <-worked:
			t.Fatalf("the second user did not wait: %v", err)
		default:
		}
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := <-worked; err != nil {
			t.Error(err)
		}
		for _, c := range []*Claim{a, b} {
			if err := c.Release(t.Context(), nil); err != nil {
				t.Error(err)
			}
		}
		checkEmpty(t, f, vm)
	})
}

// E: the unplug fails after the guest has released the device, and is retried: only the host half is repeated,
// and success means that the disk is gone.
func TestDefectE_UnplugFailsOnce(t *testing.T) {
	f, vm := newLinux(t)
	c := mustClaim(t, vm, "a")
	le := mustAttach(t, vm, c, disk("/l/1"))
	f.FailNth(1, vmmtest.RefuseSecond)
	if err := le.Release(t.Context()); !errors.Is(err, vmmtest.ErrInjected) {
		t.Fatalf("Release: %v", err)
	}
	if r := vm.Status().Resources; len(r) != 1 || r[0].State != Ejected {
		t.Fatalf("after a failed unplug: %+v, want one ejected disk", r)
	}
	if err := le.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	log := f.Log()
	if last := log[len(log)-1]; last.Mount != nil || last.Device == nil {
		t.Errorf("the retry was %q, want the host half alone", last)
	}
	if err := c.Release(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, f, vm)
}

// F and G: an unknown path or container is an error and touches nothing; releasing what is released
// already is no error and touches nothing.
func TestDefectFG_UnknownIsNotSomethingElse(t *testing.T) {
	f, vm := newLinux(t)
	c := mustClaim(t, vm, "a")
	le := mustAttach(t, vm, c, disk("/l/1"))
	mustAttach(t, vm, c, disk("/l/2"))
	if _, err := vm.FindClaim("b"); !errors.Is(err, ErrUnknownClaim) {
		t.Errorf("FindClaim: %v", err)
	}
	if err := le.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := fmt.Sprint(f.Leftovers())
	if err := le.Release(t.Context()); err != nil {
		t.Errorf("second Release: %v", err)
	}
	if after := fmt.Sprint(f.Leftovers()); after != before {
		t.Errorf("a second Release changed %s into %s", before, after)
	}
}

// A lease whose removal somebody else needs finished first does not block that somebody.
func TestLeftoverIsSettledByTheNextUser(t *testing.T) {
	for _, fault := range []vmmtest.Fault{vmmtest.RefuseSecond, vmmtest.AfterEffect} {
		f, vm := newLinux(t)
		a, b := mustClaim(t, vm, "a"), mustClaim(t, vm, "b")
		le := mustAttach(t, vm, a, disk("/l/1"))
		f.FailNth(1, fault)
		if err := le.Release(t.Context()); err == nil {
			t.Fatal("no fault happened")
		}
		mustAttach(t, vm, b, disk("/l/1"))
		if err := le.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(f.Leftovers()) != 2 {
			t.Fatalf("%s: b's disk went with a's lease: %q", fault, f.Leftovers())
		}
		for _, c := range []*Claim{a, b} {
			if err := c.Release(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
		}
		checkEmpty(t, f, vm)
	}
}
