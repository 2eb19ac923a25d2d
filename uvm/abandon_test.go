package uvm

import (
	"context"
	"testing"
	"time"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// TestAbandon: what is abandoned stays in the machine and is in nobody's way, also for later processes. What others hold
// too they keep, and it is shared as before.
func TestAbandon(t *testing.T) {
	f, dir := vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits()), t.TempDir()
	vm := openFake(t, f, dir)
	a, b := mustClaim(t, vm, "a"), mustClaim(t, vm, "b")
	shared := mustAttach(t, vm, a, disk("/layer"))
	mustAttach(t, vm, b, disk("/layer"))
	if err := b.Commit(nil); err != nil {
		t.Fatal(err)
	}
	share := func(c *Claim) *Lease {
		t.Helper()
		le, err := vm.VirtioFS().Share(t.Context(), c, "volume", "/data", false, false)
		if err != nil {
			t.Fatal(err)
		}
		return le
	}
	lost := share(a)
	own := mustAttach(t, vm, a, disk("/scratch"))
	there := len(f.Leftovers())

	vm.l.mu.Lock() // as while another changes it
	busy := make(chan struct{})
	lost.res.busy = busy
	vm.l.mu.Unlock()
	short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := a.Abandon(short); err == nil || len(a.Leases()) != 3 {
		t.Errorf("abandoned while it is changed: %v, holds %d", err, len(a.Leases()))
	}
	vm.l.mu.Lock()
	lost.res.busy = nil
	close(busy)
	vm.l.mu.Unlock()

	for range 2 {
		if err := a.Abandon(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := vm.FindClaim("a"); err == nil || len(a.Leases()) != 0 {
		t.Errorf("the claim is there, and holds %d", len(a.Leases()))
	}
	for round := range 2 { // in this process, and in one that opens the VM later
		if got := len(f.Leftovers()); got != there {
			t.Errorf("%d: %d things are in the machine, not %d: %q", round, got, there, f.Leftovers())
		}
		c := mustClaim(t, vm, "a")
		if le := share(c); le.GuestPath() == lost.GuestPath() {
			t.Errorf("%d: a share that was lost is used again", round)
		}
		if le := mustAttach(t, vm, c, disk("/scratch")); le.GuestPath() == own.GuestPath() {
			t.Errorf("%d: a disk that is abandoned is used again", round)
		}
		if le := mustAttach(t, vm, c, disk("/layer")); le.GuestPath() != shared.GuestPath() {
			t.Errorf("%d: what another container holds is not shared", round)
		}
		if err := c.Release(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if round == 0 {
			if err := vm.Close(); err != nil {
				t.Fatal(err)
			}
			vm = openFake(t, f, dir)
		}
	}
	b, err := vm.FindClaim("b")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Release(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if s := vm.Status(); !s.Empty() || len(f.Leftovers()) != there {
		t.Errorf("in the end: %+v, and in the machine %q", s, f.Leftovers())
	}
}

// TestAbandonShared: a folder whose server has died is shared anew, whoever held it and however often.
func TestAbandonShared(t *testing.T) {
	vm := openFake(t, vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits()), t.TempDir())
	share := func(c *Claim, role string) *Lease {
		t.Helper()
		le, err := vm.VirtioFS().Share(t.Context(), c, role, "/data", false, false)
		if err != nil {
			t.Fatal(err)
		}
		return le
	}
	for name, end := range map[string]func(*Claim) error{
		"abandoned": func(c *Claim) error { return c.Abandon(t.Context()) },
		"released":  func(c *Claim) error { return c.Release(t.Context(), nil) },
	} {
		a, b := mustClaim(t, vm, "a"), mustClaim(t, vm, "b")
		lost := share(a, "one")
		share(a, "two")
		share(b, "one")
		if err := a.Abandon(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := end(b); err != nil {
			t.Fatal(err)
		}
		c := mustClaim(t, vm, "c")
		if le := share(c, "one"); le.GuestPath() == lost.GuestPath() {
			t.Errorf("the other one is %s: the share that was lost is used again", name)
		}
		if err := c.Release(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
}
