package qemu

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm"
)

// half is one side of a Change.
type half struct {
	do      func(ctx context.Context) (vmm.Outcome, error)
	outcome *vmm.Outcome
}

// call is an Apply under way. It goes on in a goroutine of its own, so that the caller can leave at
// any time; then the half that is under way comes to rest and the other is not begun.
type call struct {
	mu        sync.Mutex
	abandoned bool
	e         vmm.ApplyError
	finished  chan struct{}
}

// Apply implements vmm.Machine.
func (m *Machine) Apply(ctx context.Context, c vmm.Change) error {
	cl := &call{e: vmm.ApplyError{Change: c}, finished: make(chan struct{})}
	halves, addresses, err := m.halves(c, &cl.e)
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = m.begin()
	}
	if err != nil {
		cl.e.Err = err
		return &cl.e
	}
	release, err := m.takeLanes(ctx, addresses)
	if err != nil {
		m.work.Done()
		cl.e.Err = err
		return &cl.e
	}
	// The work keeps the values of ctx, for tracing, but ends with the machine only.
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(m.base, func() { cancel(context.Cause(m.base)) })
	go func() {
		defer m.work.Done()
		defer cancel(nil)
		defer stop()
		defer release()
		cl.run(work, m, halves)
	}()
	select {
	case <-cl.finished:
	case <-ctx.Done():
	}
	return cl.result(ctx)
}

func (m *Machine) takeLanes(ctx context.Context, addresses []string) (func(), error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(m.base, func() { cancel(context.Cause(m.base)) })
	defer stop()
	return m.lanes.take(ctx, addresses)
}

// run does the halves one after the other.
func (cl *call) run(ctx context.Context, m *Machine, halves []half) {
	defer close(cl.finished)
	for _, h := range halves {
		cl.mu.Lock()
		if cl.abandoned {
			cl.mu.Unlock()
			return
		}
		*h.outcome = vmm.Unknown
		cl.mu.Unlock()
		outcome, err := h.do(ctx)
		if err != nil {
			err = m.explain(err)
		}
		cl.mu.Lock()
		if cl.abandoned {
			cl.mu.Unlock()
			m.log.Info("an abandoned change came to rest", "change", cl.e.Change.String(), "outcome", outcome.String(), "error", err)
			return
		}
		*h.outcome, cl.e.Err = outcome, err
		cl.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// result is what the caller gets: of what has finished, or of what it leaves.
func (cl *call) result(ctx context.Context) error {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	select {
	case <-cl.finished:
		if cl.e.Err == nil {
			return nil
		}
	default:
		cl.abandoned = true
		cl.e.Err = context.Cause(ctx)
	}
	e := cl.e // the halves of the worker keep pointing to cl.e
	return &e
}

// halves gives what there is to do, in order, and the addresses that are worked with.
func (m *Machine) halves(c vmm.Change, e *vmm.ApplyError) (out []half, addresses []string, err error) {
	if c.Empty() {
		return nil, nil, errors.New("the change is empty")
	}
	if c.Device != nil {
		do, err := m.hostHalf(c.Op, c.Device)
		if err != nil {
			return nil, nil, err
		}
		out = append(out, half{do, &e.Host})
		addresses = append(addresses, c.Device.Addr())
	}
	if c.Mount != nil {
		req, err := vmm.GuestRequest(c.Op, c.Mount, vmm.Linux)
		if err != nil {
			return nil, nil, err
		}
		out = append(out, half{func(ctx context.Context) (vmm.Outcome, error) { return m.modify(ctx, req) }, &e.Guest})
		for _, a := range guestAddresses(c.Mount) {
			if len(addresses) == 0 || a != addresses[0] {
				addresses = append(addresses, a)
			}
		}
	}
	if c.Op == vmm.Remove && len(out) == 2 {
		out[0], out[1] = out[1], out[0]
	}
	return out, addresses, nil
}

// guestAddresses are what a guest action works with: its target and its disk. Several partitions of
// a disk may be mounted at a time, but a disk is not detached while one of them is.
func guestAddresses(g vmm.Mount) []string {
	var out []string
	if t := g.Target(); t != "" {
		out = append(out, "guest "+t)
	}
	if d, ok := g.(vmm.MappedDisk); ok && d.MountPath == "" {
		out = append(out, vmm.SCSIAddr(d.Controller, d.LUN))
	}
	return out
}

func (m *Machine) modify(ctx context.Context, req hcsschema.GuestRequest) (vmm.Outcome, error) {
	g, err := m.port.get(ctx)
	if err == nil {
		err = g.Modify(ctx, req)
	}
	return guestOutcome(err)
}

func (m *Machine) hostHalf(op vmm.Op, d vmm.Device) (func(context.Context) (vmm.Outcome, error), error) {
	if op != vmm.Add && op != vmm.Remove {
		return nil, fmt.Errorf("%s %s: a QEMU machine has no devices that can be updated: %w", op, d.Addr(), errors.ErrUnsupported)
	}
	switch d := d.(type) {
	case vmm.SCSIDisk:
		if d.Controller >= controllers || d.LUN >= lunsPerBus {
			return nil, fmt.Errorf("%s: there are %d controllers with %d LUNs", d.Addr(), controllers, lunsPerBus)
		}
		if op == vmm.Remove {
			return func(ctx context.Context) (vmm.Outcome, error) { return m.detachSCSI(ctx, d.Controller, d.LUN) }, nil
		}
		return m.occupied(d, func(ctx context.Context) (vmm.Outcome, error) { return m.attachSCSI(ctx, d) }), nil
	case vmm.VPMEMDevice:
		if d.Slot >= pmemDevices {
			return nil, fmt.Errorf("%s: there are %d slots", d.Addr(), pmemDevices)
		}
		if op == vmm.Remove {
			return func(context.Context) (vmm.Outcome, error) { return m.detachPMEM(d) }, nil
		}
		return m.occupied(d, func(ctx context.Context) (vmm.Outcome, error) { return m.attachPMEM(ctx, d) }), nil
	}
	return nil, fmt.Errorf("%s %s: a QEMU machine has no such devices (%T): %w", op, d.Addr(), d, errors.ErrUnsupported)
}

// occupied lets add run when nothing is at the address. What is there already exactly is a success.
func (m *Machine) occupied(d vmm.Device, add func(context.Context) (vmm.Outcome, error)) func(context.Context) (vmm.Outcome, error) {
	return func(ctx context.Context) (vmm.Outcome, error) {
		m.mu.Lock()
		old, taken := m.attached[d.Addr()]
		m.mu.Unlock()
		if taken && reflect.DeepEqual(old, d) {
			return vmm.Done, nil
		}
		if taken {
			return vmm.NotDone, fmt.Errorf("%w by %s", vmm.ErrOccupied, old)
		}
		outcome, err := add(ctx)
		if outcome == vmm.Done {
			m.mu.Lock()
			m.attached[d.Addr()] = d
			m.mu.Unlock()
		}
		return outcome, err
	}
}

// vacate notes that an address is free.
func (m *Machine) vacate(addr string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.attached, addr)
}
