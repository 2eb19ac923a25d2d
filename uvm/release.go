package uvm

import (
	"context"

	"github.com/stratavm/strata/vmm"
)

// follow moves a lease from a removed mount to the device below it, or ends the lease.
func (l *ledger) follow(t *tx, le *Lease) {
	for le.res != nil && le.res.state == Free {
		below := le.res.parent
		delete(le.res.leases, le)
		le.res = below
		if below != nil {
			below.leases[le] = struct{}{}
			if below.state != Free {
				t.lease(le)
			}
		}
	}
	if le.res == nil {
		l.end(t, le)
	}
}

// drop releases a lease. The last lease removes the resource, and with it the device below unless something else is on
// it. On failure the lease stays on what is left.
func (l *ledger) drop(ctx context.Context, le *Lease) error {
	for {
		l.mu.Lock()
		t := l.begin()
		r := le.res
		if r != nil && l.gone {
			l.set(nil, r, evMachineGone)
		}
		if r == nil || r.state == Free {
			l.follow(t, le)
			l.logFailure(t.write())
			done := le.res == nil
			l.mu.Unlock()
			if done {
				return nil
			}
			continue
		}
		if ch := busyOf(r); ch != nil {
			l.mu.Unlock()
			if err := wait(ctx, ch); err != nil {
				return err
			}
			continue
		}
		if r.refs() > 1 || r.retained {
			l.end(t, le)
			l.logFailure(t.write())
			l.mu.Unlock()
			return nil
		}
		change, parts := removal(r)
		for _, p := range parts {
			l.set(t, p.resource, evDetach)
			p.busy = make(chan struct{})
		}
		if err := t.write(); err != nil && !l.machine.Limits().Observes {
			for _, p := range parts {
				l.settle(nil, p.resource, p.stays())
			}
			l.mu.Unlock()
			return err
		} else if err != nil {
			// Do not keep things attached because the disk is full: Open asks the machine what is there.
			l.logFailure(err)
		}
		l.mu.Unlock()
		if err := l.remove(ctx, le, change, parts); err != nil {
			return err
		}
	}
}

// leaving is a resource that is being removed, with its state before.
type leaving struct {
	*resource
	from State
}

// unmoved is the event, by the state before, for a removal that had no effect.
var unmoved = map[State]event{Attached: evNotDone, Doubtful: evUnknown, Ejected: evGuestLetGo}

func (p leaving) stays() event { return unmoved[p.from] }

// removal returns the Change that removes r, and the affected resources, the mount first.
func removal(r *resource) (vmm.Change, []leaving) {
	change := vmm.Change{Op: vmm.Remove, Device: r.device, Mount: r.guest}
	parts := []leaving{{r, r.state}}
	if d := r.parent; d != nil && d.refs() == 1 && !d.retained {
		change.Device = d.device
		parts = append(parts, leaving{d, d.state})
	}
	return change, parts
}

// remove applies a removal and moves the lease to what is left.
func (l *ledger) remove(ctx context.Context, le *Lease, change vmm.Change, parts []leaving) error {
	err := l.apply(ctx, change)
	host, guest := vmm.Outcomes(change, err)
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.begin()
	for _, p := range parts {
		outcome := host
		if p.guest != nil {
			outcome = guest
		}
		switch {
		case outcome != vmm.NotDone:
			l.finish(t, p.resource, outcome)
		case p.device != nil && change.Mount != nil && guest == vmm.Done:
			l.settle(t, p.resource, evGuestLetGo)
		default:
			l.settle(t, p.resource, p.stays())
		}
	}
	l.follow(t, le)
	l.logFailure(t.write())
	if l.gone || (change.Device == nil || host == vmm.Done) && (change.Mount == nil || guest == vmm.Done) {
		return nil // even if ctx ended during the last half
	}
	return err
}
