package strata

import (
	"context"
	"errors"
	"testing"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// TestContextEndsBetweenStartAndOpen: a VM that was started and could not be reopened does not run on.
func TestContextEndsBetweenStartAndOpen(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	m := vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())
	o := VMOptions{Dir: t.TempDir(), Logger: discard(nil)}
	killed := ""
	_, err := openStarted(ctx, o, func(context.Context) (vmm.Machine, error) {
		cancel()
		return m, nil
	}, func(ctx context.Context, dir string) error {
		killed = dir
		return errors.Join(ctx.Err(), m.Terminate(ctx))
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("opened: %v", err)
	}
	if killed != o.Dir || m.Err() == nil {
		t.Errorf("the machine runs on (killed in %q)", killed)
	}
	if _, err := openStarted(t.Context(), o, func(context.Context) (vmm.Machine, error) {
		return nil, ErrRunning
	}, func(context.Context, string) error {
		t.Error("a machine that somebody else has started is killed")
		return nil
	}); !errors.Is(err, ErrRunning) {
		t.Errorf("opened: %v", err)
	}
}
