package qemu

import (
	"context"
	"errors"
	"fmt"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/applyengine"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/vmm"
)

// Apply implements vmm.Machine.
func (m *Machine) Apply(ctx context.Context, c vmm.Change) error {
	if err := m.Err(); err != nil {
		return &vmm.ApplyError{Change: c, Err: err}
	}
	return m.engine.Run(ctx, c, m.halves)
}

// halves returns the two halves of a Change: the host half over QMP, the guest half by the agent.
func (m *Machine) halves(c vmm.Change) (h applyengine.Halves, err error) {
	if c.Device != nil {
		half, err := m.hostHalf(c.Op, c.Device)
		if err != nil {
			return h, err
		}
		h.Host = m.explained(half)
	}
	if err := m.served(c); err != nil {
		return h, err
	}
	if c.Mount != nil {
		req, err := vmm.GuestRequest(c.Op, c.Mount, vmm.Linux)
		if err != nil {
			return h, err
		}
		h.Guest = m.explained(func(ctx context.Context) (vmm.Outcome, error) {
			err := m.modify(ctx, req)
			return gcs.Outcome(err), err
		})
	}
	return h, nil
}

// explained wraps a half so that its errors are preceded by the end of the machine, if that caused them.
func (m *Machine) explained(half applyengine.Half) applyengine.Half {
	return func(ctx context.Context) (vmm.Outcome, error) {
		outcome, err := half(ctx)
		return outcome, m.explain(err)
	}
}

func (m *Machine) modify(ctx context.Context, req hcsschema.GuestRequest) error {
	g, err := m.port.get(ctx)
	if err != nil {
		return err
	}
	return g.Modify(ctx, req)
}

func (m *Machine) hostHalf(op vmm.Op, d vmm.Device) (applyengine.Half, error) {
	if op != vmm.Add && op != vmm.Remove {
		return nil, fmt.Errorf("%s %s: a QEMU machine has no devices that can be updated: %w", op, d.Addr(),
			errors.ErrUnsupported)
	}
	switch d := d.(type) {
	case vmm.SCSIDisk:
		if d.Controller >= controllers || d.LUN >= lunsPerBus {
			return nil, fmt.Errorf("%s: there are %d controllers with %d LUNs", d.Addr(), controllers, lunsPerBus)
		}
		if op == vmm.Remove {
			return func(ctx context.Context) (vmm.Outcome, error) { return m.detachSCSI(ctx, d.Controller, d.LUN) }, nil
		}
		return func(ctx context.Context) (vmm.Outcome, error) { return m.attachSCSI(ctx, d) }, nil
	case vmm.VPMEMDevice:
		if d.Slot >= pmemDevices {
			return nil, fmt.Errorf("%s: there are %d slots", d.Addr(), pmemDevices)
		}
		if op == vmm.Remove {
			return func(context.Context) (vmm.Outcome, error) { return m.detachPMEM(d) }, nil
		}
		return func(ctx context.Context) (vmm.Outcome, error) { return m.attachPMEM(ctx, d) }, nil
	case vmm.NIC:
		if err := checkNIC(d); err != nil {
			return nil, err
		}
		if op == vmm.Remove {
			return func(ctx context.Context) (vmm.Outcome, error) { return m.detachNIC(ctx, d) }, nil
		}
		return func(ctx context.Context) (vmm.Outcome, error) { return m.attachNIC(ctx, d) }, nil
	case vmm.VirtioFSShare:
		if d.Slot >= maxShares {
			return nil, fmt.Errorf("%s: there are %d slots", d.Addr(), maxShares)
		}
		if op == vmm.Remove {
			return func(ctx context.Context) (vmm.Outcome, error) { return m.detachShare(ctx, d) }, nil
		}
		return func(ctx context.Context) (vmm.Outcome, error) { return m.attachShare(ctx, d) }, nil
	}
	return nil, fmt.Errorf("%s %s: a QEMU machine has no such devices (%T): %w", op, d.Addr(), d, errors.ErrUnsupported)
}
