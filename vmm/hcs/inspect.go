package hcs

import (
	"context"
	"errors"
	"fmt"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm"
)

// Inspect reports whether the VM with an identifier exists and has not stopped. A VM whose start was interrupted counts
// as existing. It does not connect to the guest, so a guest that does not answer does not matter.
func Inspect(ctx context.Context, api API, id string) (there bool, err error) {
	s, err := openSystem(ctx, api, id)
	if errors.Is(err, vmm.ErrGone) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("inspect utility VM: %w", err)
	}
	p, err := s.properties(ctx)
	if IsNotExist(err) || IsAlreadyStopped(err) {
		p.Stopped, err = true, nil
	}
	if err = errors.Join(err, s.close(ctx)); err != nil {
		return false, fmt.Errorf("inspect utility VM: %w", err)
	}
	return !p.Stopped && p.State != hcsschema.StateStopped, nil
}

// Kill terminates the VM with an identifier and waits for its exit, without a connection to its guest. If there is no
// such VM, it succeeds.
func Kill(ctx context.Context, api API, id string) error {
	s, err := openSystem(ctx, api, id)
	if errors.Is(err, vmm.ErrGone) {
		return nil
	}
	if err == nil {
		err = errors.Join(s.terminate(ctx), s.close(ctx))
	}
	if err != nil {
		return fmt.Errorf("end utility VM: %w", err)
	}
	return nil
}
