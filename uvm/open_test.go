package uvm

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// TestNewMachineDiscardsJournal: a new machine has nothing of the one before; when it does not come to be, the ledger
// stays.
func TestNewMachineDiscardsJournal(t *testing.T) {
	dir := t.TempDir()
	old := vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())
	vm := openFake(t, old, dir)
	c := mustClaim(t, vm, "web")
	mustAttach(t, vm, c, disk("/base.vhd"))
	if err := errors.Join(c.Commit(nil), vm.Close()); err != nil {
		t.Fatal(err)
	}
	no := errors.New("it runs already")
	if _, err := Open(t.Context(), dir, func(context.Context) (vmm.Machine, error) { return nil, no },
		Options{DiscardJournal: true}); !errors.Is(err, no) {
		t.Errorf("got %v", err)
	}
	if s, err := ReadStatus(dir); err != nil || len(s.Claims) != 1 {
		t.Errorf("the ledger after a machine that did not come to be: %+v, %v", s, err)
	}
	f := vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())
	vm, err := Open(t.Context(), dir, func(context.Context) (vmm.Machine, error) { return f, nil },
		Options{DiscardJournal: true})
	if err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, f, vm)
	if err := vm.Close(); err != nil {
		t.Error(err)
	}
	if s, err := ReadStatus(dir); err != nil || !s.Empty() {
		t.Errorf("on disk: %+v, %v", s, err)
	}
}

// mute is a machine that says nothing.
type mute struct{ *vmmtest.Fake }

func (m mute) Observe(ctx context.Context) (vmm.Observation, error) {
	<-ctx.Done()
	return vmm.Observation{}, context.Cause(ctx)
}

func TestNoAnswer(t *testing.T) {
	for name, connect := range map[string]Connect{
		"connect": func(ctx context.Context) (vmm.Machine, error) { <-ctx.Done(); return nil, context.Cause(ctx) },
		"observe": func(context.Context) (vmm.Machine, error) {
			return mute{vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())}, nil
		},
	} {
		if _, err := Open(t.Context(), t.TempDir(), connect, Options{ResponseTimeout: time.Millisecond}); !errors.Is(err,
			ErrNoAnswer) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
