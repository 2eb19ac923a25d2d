package uvm

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/stratavm/strata/vmm"
)

// resource is a device of the machine or a mount in the guest: exactly one of device and guest is set. All fields are
// guarded by ledger.mu. The goroutine that sets busy owns the resource until busy is closed: only it may change the
// machine.
type resource struct {
	id       int
	key      string // identity: requests with the same key share the resource
	device   vmm.Device
	guest    vmm.Mount
	parent   *resource // the device that a mount is on, if any
	retained bool      // the device cannot be removed while the machine is running

	state    State
	leases   map[*Lease]struct{}
	children int           // mounts that are on this device
	busy     chan struct{} // closed when the change in progress has ended
}

// refs returns the number of users.
func (r *resource) refs() int { return len(r.leases) + r.children }

func (r *resource) String() string {
	if r.device != nil {
		return r.device.String()
	}
	return r.guest.String()
}

// ledger is the table of all resources, leases and claims of a VM. All changes to the machine go through apply.
type ledger struct {
	machine vmm.Machine
	log     *slog.Logger
	tel     *telemetry
	undo    time.Duration // time limit for rolling back a failed or cancelled call

	mu        sync.Mutex
	journal   *journal
	resources map[int]*resource
	byKey     map[string]*resource
	byTarget  map[string]*resource // mounts by guest path
	claims    map[string]*Claim
	slots     slotTable
	lastID    int
	mounts    int  // number in the last guest mount path
	vsmb      int  // number in the last VSMB share name
	plan9     int  // number of the next Plan9 share
	gone      bool // the machine is gone: everything counts as released
	closed    bool
}

// want describes what acquire should find or create: a device, a mount, or a mount on a device. The functions are
// called with the ledger locked; they choose addresses and paths.
type want struct {
	deviceKey string
	device    func() (vmm.Device, error)
	retained  bool
	mountKey  string
	mount     func(vmm.Device) (vmm.Mount, error)
	exclusive bool                    // a second user is an error
	path      func(vmm.Device) string // guest path of a device without a mount
}

// acquire returns a lease of the claim on what w describes. It shares an attached resource, waits for one with a
// change in progress, and creates a missing one. On failure it rolls back; if that fails too, the lease stays in the
// claim, to be released later.
func (l *ledger) acquire(ctx context.Context, c *Claim, role string, w want) (*Lease, error) {
	for {
		l.mu.Lock()
		if err := c.live(); err != nil {
			l.mu.Unlock()
			return nil, err
		}
		m, d := l.byKey[w.mountKey], l.byKey[w.deviceKey]
		if ch := busyOf(m, d); ch != nil {
			l.mu.Unlock()
			if err := wait(ctx, ch); err != nil {
				return nil, err
			}
			continue
		}
		if stale := unsettled(m, d); stale != nil {
			le := l.leaseOn(stale)
			l.mu.Unlock()
			if err := l.drop(ctx, le); err != nil {
				return nil, fmt.Errorf("remove %s, which an earlier failure left: %w", stale, err)
			}
			continue
		}
		if taken := shareable(m, d, w); taken != nil && w.exclusive {
			l.mu.Unlock()
			return nil, fmt.Errorf("%s: %w", taken, ErrAlreadyAttached)
		}
		if found := shareable(m, d, w); found != nil {
			le, err := l.share(c, role, found, w)
			l.mu.Unlock()
			return le, err
		}
		a, err := l.prepare(c, role, d, w)
		l.mu.Unlock()
		if err != nil {
			return nil, err
		}
		return l.add(ctx, a)
	}
}

// busyOf returns the channel to wait on if a change of one of the resources, or of a device below, is in progress.
func busyOf(rs ...*resource) chan struct{} {
	for _, r := range rs {
		for ; r != nil; r = r.parent {
			if r.busy != nil {
				return r.busy
			}
		}
	}
	return nil
}

// unsettled returns the first resource that an earlier failure left in an intermediate state and that must be removed
// before it can be created again. Retained devices cannot be removed: adding them again settles their state.
func unsettled(rs ...*resource) *resource {
	for _, r := range rs {
		if r != nil && r.state != Attached && !r.retained {
			return r
		}
	}
	return nil
}

func shareable(m, d *resource, w want) *resource {
	switch {
	case w.mountKey != "":
		return m
	case d != nil && d.state == Attached:
		return d
	}
	return nil
}

// leaseOn returns a lease that holds r: on r itself, or on a mount on top of it.
func (l *ledger) leaseOn(r *resource) *Lease {
	for le := range r.leases {
		return le
	}
	for _, m := range l.resources {
		if m.parent == r {
			return l.leaseOn(m)
		}
	}
	return nil
}

func (l *ledger) usable() error {
	switch {
	case l.closed:
		return ErrClosed
	case l.gone:
		return goneError(l.machine)
	}
	return nil
}

// share adds a user to an attached resource. The machine is not called.
func (l *ledger) share(c *Claim, role string, r *resource, w want) (*Lease, error) {
	t := l.begin()
	le := l.newLease(t, c, role, r, w)
	if err := t.write(); err != nil {
		l.unlink(le)
		return nil, err
	}
	return le, nil
}

// addition is an Add that has been written to the journal and is in progress.
type addition struct {
	lease   *Lease
	change  vmm.Change
	settles bool // the device may exist already: adding it again resolves the Doubtful state
}

// prepare creates the missing resources, writes the intent to the journal and marks them busy.
func (l *ledger) prepare(c *Claim, role string, d *resource, w want) (addition, error) {
	a := addition{change: vmm.Change{Op: vmm.Add}}
	t := l.begin()
	var made []*resource
	cancel := func() {
		for _, r := range made {
			l.set(nil, r, evCancel)
		}
	}
	if w.deviceKey != "" && d == nil {
		dev, err := w.device()
		if err != nil {
			return a, err
		}
		d = l.newResource(w.deviceKey, dev, nil, nil, w.retained)
		made = append(made, d)
	}
	top := d
	if w.mountKey != "" {
		var dev vmm.Device
		if d != nil {
			dev = d.device
		}
		g, err := w.mount(dev)
		if err == nil {
			err = l.targetFree(l.occupies(g))
		}
		if err != nil {
			cancel()
			return a, err
		}
		top = l.newResource(w.mountKey, nil, g, d, false)
		made = append([]*resource{top}, made...)
	}
	a.lease = l.newLease(t, c, role, top, w)
	parts := made
	if a.settles = d != nil && d.state == Doubtful; a.settles {
		parts = append(parts, d)
	}
	for _, r := range parts {
		l.set(t, r, evAttach)
		r.busy = make(chan struct{})
		if r.device != nil {
			a.change.Device = r.device
		} else {
			a.change.Mount = r.guest
		}
	}
	if err := t.write(); err != nil {
		l.unlink(a.lease)
		for _, r := range parts {
			ev := evUnknown
			if slices.Contains(made, r) {
				ev = evNotDone
			}
			l.settle(nil, r, ev)
		}
		return a, err
	}
	return a, nil
}

func (l *ledger) targetFree(target string) error {
	if target == "" || l.byTarget[target] == nil {
		return nil
	}
	return fmt.Errorf("%s: %w by %s", target, ErrGuestPathInUse, l.byTarget[target])
}

// add applies the change that prepare wrote to the journal, and rolls it back on failure.
func (l *ledger) add(ctx context.Context, a addition) (*Lease, error) {
	le, change := a.lease, a.change
	err := l.apply(ctx, change)
	host, guest := vmm.Outcomes(change, err)
	if a.settles && host == vmm.NotDone {
		host = vmm.Unknown // this Add had no effect, but the earlier one may have had
	}
	l.mu.Lock()
	t := l.begin()
	r := le.res
	m, d := r, r.parent
	if r.device != nil {
		m, d = nil, r
	}
	if m != nil {
		l.finish(t, m, guest)
	}
	if d != nil && change.Device != nil {
		l.finish(t, d, host)
	}
	if err == nil {
		l.logFailure(t.write())
		l.mu.Unlock()
		return le, nil
	}
	l.follow(t, le)
	l.logFailure(t.write())
	l.mu.Unlock()

	grace, cancel := l.grace(ctx)
	defer cancel()
	if uerr := l.drop(grace, le); uerr != nil {
		return nil, fmt.Errorf("%w; rolling back failed and the rest stays with container %s: %w",
			err, le.claim.id, uerr)
	}
	return nil, err
}

var outcomeEvents = map[vmm.Outcome]event{vmm.Done: evDone, vmm.NotDone: evNotDone, vmm.Unknown: evUnknown}

// finish records the outcome of the change in progress and wakes the waiters.
func (l *ledger) finish(t *tx, r *resource, o vmm.Outcome) { l.settle(t, r, outcomeEvents[o]) }

func (l *ledger) settle(t *tx, r *resource, ev event) {
	if l.gone {
		ev = evMachineGone
	}
	l.set(t, r, ev)
	l.rest(r)
}

func (l *ledger) rest(r *resource) {
	if r.busy != nil {
		close(r.busy)
		r.busy = nil
	}
}

// apply applies one change to the machine. The ledger must not be locked.
func (l *ledger) apply(ctx context.Context, c vmm.Change) error {
	err := l.tel.apply(ctx, l.machine, c)
	if err != nil && isGone(err) {
		l.mu.Lock()
		l.gone = true
		l.mu.Unlock()
	}
	return err
}

func wait(ctx context.Context, ch <-chan struct{}) error {
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for a change in progress: %w", context.Cause(ctx))
	}
}

// logFailure logs that an outcome could not be written to the journal. The ledger in memory is right, and Open asks
// the machine anyway.
func (l *ledger) logFailure(err error) {
	if err != nil {
		l.log.Error("the outcome of a change is not in the journal", "error", err)
	}
}
