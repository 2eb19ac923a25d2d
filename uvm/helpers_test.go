package uvm

import (
	"context"
	"testing"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// openFake opens a VM over a machine in memory, with a journal in dir unless that is empty.
func openFake(t testing.TB, f *vmmtest.Fake, dir string) *UtilityVM {
	t.Helper()
	vm, err := Open(t.Context(), dir, func(context.Context) (vmm.Machine, error) { return f, f.Err() }, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	return vm
}

func newLinux(t testing.TB) (*vmmtest.Fake, *UtilityVM) {
	f := vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())
	return f, openFake(t, f, t.TempDir())
}

func mustClaim(t testing.TB, vm *UtilityVM, id string) *Claim {
	t.Helper()
	c, err := vm.Claim(t.Context(), id, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// disk is a disk that is mounted.
func disk(path string) Disk { return Disk{Path: path, ReadOnly: true, Mount: &DiskMount{}} }

func mustAttach(t testing.TB, vm *UtilityVM, c *Claim, d Disk) *Lease {
	t.Helper()
	le, err := vm.SCSI().Attach(t.Context(), c, "layer", d)
	if err != nil {
		t.Fatal(err)
	}
	return le
}

// checkEmpty fails unless nothing is left in the world and in the ledger.
func checkEmpty(t testing.TB, f *vmmtest.Fake, vm *UtilityVM) {
	t.Helper()
	if left := f.Leftovers(); len(left) > 0 {
		t.Errorf("left in the machine: %q", left)
	}
	if s := vm.Status(); !s.Empty() {
		t.Errorf("left in the ledger: %+v", s)
	}
	if v := f.Violations(); len(v) > 0 {
		t.Errorf("rules of the world broken: %q", v)
	}
}
