package uvm

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/atomicfile"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// doubt attaches d for a claim such that nobody knows whether it is there: the call is given up while it
// hangs, and taking it back ends as undo says.
func doubt(t *testing.T, f *vmmtest.Fake, vm *UtilityVM, id string, d Disk, add, undo vmmtest.Fault) *Claim {
	t.Helper()
	c := mustClaim(t, vm, id)
	f.Script(func(n int, _ vmm.Change) vmmtest.Fault {
		return map[int]vmmtest.Fault{1: add, 2: undo}[n]
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := vm.SCSI().Attach(ctx, c, "layer", d); err == nil {
		t.Fatal("the attach succeeded")
	}
	f.Script(nil)
	return c
}

// TestDoubtOutlivesRefusedUndo: a removal that did nothing says no more of a disk than was known before.
// The next user must not be told that it is there.
func TestDoubtOutlivesRefusedUndo(t *testing.T) {
	for _, add := range []vmmtest.Fault{vmmtest.HangBefore, vmmtest.HangAfter} {
		for _, undo := range []vmmtest.Fault{vmmtest.RefuseFirst, vmmtest.RefuseSecond, vmmtest.AfterEffect} {
			t.Run(add.String()+"/"+undo.String(), func(t *testing.T) {
				f, vm := newLinux(t)
				a := doubt(t, f, vm, "a", disk("/l/1"), add, undo)
				b := mustClaim(t, vm, "b")
				mustAttach(t, vm, b, disk("/l/1"))
				if left := f.Leftovers(); len(left) != 2 {
					t.Errorf("b has been given a disk; in the machine is %q", left)
				}
				if err := errors.Join(a.Release(t.Context(), nil), b.Release(t.Context(), nil)); err != nil {
					t.Error(err)
				}
				checkEmpty(t, f, vm)
			})
		}
	}
}

// TestEjectedStaysEjected: a device that the guest has released does not come back because removing it is
// refused a second time.
func TestEjectedStaysEjected(t *testing.T) {
	f, vm := newLinux(t)
	a := mustClaim(t, vm, "a")
	le := mustAttach(t, vm, a, disk("/l/1"))
	f.Script(func(n int, _ vmm.Change) vmmtest.Fault {
		return map[int]vmmtest.Fault{1: vmmtest.RefuseSecond, 2: vmmtest.RefuseFirst}[n]
	})
	for i := range 2 {
		if err := le.Release(t.Context()); !errors.Is(err, vmmtest.ErrInjected) {
			t.Fatalf("release %d: %v", i+1, err)
		}
		if r := vm.Status().Resources; len(r) != 1 || r[0].State != Ejected {
			t.Errorf("after release %d: %+v, want the disk alone, ejected", i+1, r)
		}
	}
	if err := a.Release(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, f, vm)
}

// TestDoubtfulDiskIsHeldByItsMount: another mount of a disk that is in doubt settles it first, though
// nobody has a lease on the disk itself.
func TestDoubtfulDiskIsHeldByItsMount(t *testing.T) {
	f, vm := newLinux(t)
	part := func(n uint64) Disk { return Disk{Path: "/l/parts", ReadOnly: true, Mount: &DiskMount{Partition: n}} }
	a := doubt(t, f, vm, "a", part(1), vmmtest.HangBefore, vmmtest.AfterEffect)
	b := mustClaim(t, vm, "b")
	mustAttach(t, vm, b, part(2))
	if err := errors.Join(a.Release(t.Context(), nil), b.Release(t.Context(), nil)); err != nil {
		t.Error(err)
	}
	checkEmpty(t, f, vm)
}

// TestFullDisk: where nothing more can be written down, what is held can still be given back, and the VM
// can be opened.
func TestFullDisk(t *testing.T) {
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
	blockRewriting(t)
	vm = openFake(t, f, dir)
	file := vm.l.journal.file
	readOnly, err := os.Open(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	vm.l.journal.file = readOnly // every write fails
	t.Cleanup(func() { _ = file.Close() })
	if _, err := vm.SCSI().Attach(t.Context(), mustFind(t, vm, "a"), "layer", disk("/l/2")); err == nil {
		t.Error("a disk was attached that no journal knows")
	}
	err = mustFind(t, vm, "a").Release(t.Context(), nil)
	if left := f.Leftovers(); len(left) > 0 {
		t.Errorf("left in the machine: %q (%v)", left, err)
	}
}

// blockRewriting makes the disk full for journals that are rewritten.
func blockRewriting(t *testing.T) (unblock func()) {
	t.Helper()
	unblock = func() { createFile = atomicfile.Create }
	t.Cleanup(unblock)
	createFile = func(path string, _ atomicfile.Options) (*atomicfile.File, error) {
		return nil, &os.PathError{Op: "create", Path: path, Err: syscall.ENOSPC}
	}
	return unblock
}

func mustFind(t *testing.T, vm *UtilityVM, id string) *Claim {
	t.Helper()
	c, err := vm.FindClaim(id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
