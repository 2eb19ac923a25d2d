package uvm

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// endless is a machine whose programs run until they are signalled.
type endless struct {
	*vmmtest.Fake
	signals []int
	closed  int
	killed  chan struct{}
}

func (m *endless) Exec(context.Context, vmm.ProcessSpec) (vmm.Process, error) {
	return endlessProcess{m}, nil
}

type endlessProcess struct{ m *endless }

func (p endlessProcess) Pid() uint32 { return 1 }
func (p endlessProcess) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.m.killed:
		return 137, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}
func (p endlessProcess) Signal(_ context.Context, sig int) error {
	p.m.signals = append(p.m.signals, sig)
	return nil
}
func (p endlessProcess) Resize(context.Context, uint16, uint16) error { return nil }
func (p endlessProcess) Close() error                                 { p.m.closed++; return nil }

// TestRunIsCancelled: a program whose caller gives up is killed and closed.
func TestRunIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())
		vm := openFake(t, f, "")
		m := &endless{Fake: f, killed: make(chan struct{})}
		vm.machine = m
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			_, err := vm.Run(ctx, vmm.ProcessSpec{Args: []string{"sleep"}})
			done <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		if len(m.signals) != 1 || m.signals[0] != sigKill || m.closed != 1 {
			t.Errorf("signals %v, closed %d times", m.signals, m.closed)
		}
	})
}

// TestExecInClosedVM: a handle that is closed starts nothing.
func TestExecInClosedVM(t *testing.T) {
	f, vm := newLinux(t)
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"id"}}); !errors.Is(err, ErrClosed) ||
		len(f.Execs()) > 0 {
		t.Errorf("Exec: %v, ran %v", err, f.Execs())
	}
}
