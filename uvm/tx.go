package uvm

import (
	"errors"

	"github.com/stratavm/strata/vmm"
)

// tx collects changes of entities that are written to the journal as one record. Its methods, and the ledger's in this
// file, need ledger.mu.
type tx struct {
	l   *ledger
	rec record
}

func (l *ledger) begin() *tx { return &tx{l: l} }

// write appends the record, and compacts the journal if it has many superseded records.
func (t *tx) write() error {
	if len(t.rec.Resources)+len(t.rec.Leases)+len(t.rec.Claims) == 0 {
		return nil
	}
	l := t.l
	if l.journal.stale {
		return l.journal.compact(l.snapshot()) // which includes this record
	}
	if err := l.journal.write(t.rec); err != nil {
		return err
	}
	live := len(l.resources) + len(l.claims)
	if l.journal.records > compactAt+4*live {
		l.logFailure(l.journal.compact(l.snapshot()))
	}
	return nil
}

func (t *tx) lease(le *Lease) {
	e := leaseEntry{ID: le.id, Claim: le.claim.id, Role: le.role, Path: le.path}
	if le.res == nil {
		e = leaseEntry{ID: le.id, Dropped: true}
	} else {
		e.Resource = le.res.id
	}
	t.rec.Leases = append(t.rec.Leases, e)
}

func (t *tx) claim(c *Claim) {
	t.rec.Claims = append(t.rec.Claims, claimEntry{ID: c.id, Phase: c.phase, Meta: c.meta})
}

// resource adds the current value of r.
func (t *tx) resource(r *resource) {
	e := resourceEntry{ID: r.id, State: r.state}
	if r.state != Free {
		e.Key, e.Retained = r.key, r.retained
		e.What = &vmm.Change{Op: vmm.Add, Device: r.device, Mount: r.guest}
		if r.parent != nil {
			e.Parent = r.parent.id
		}
	}
	t.rec.Resources = append(t.rec.Resources, e)
}

// set applies an event to a resource and, with a tx, records its new state. A resource that becomes Free is removed
// from all tables.
func (l *ledger) set(t *tx, r *resource, ev event) {
	if r.state == Free && ev != evReserve {
		return // already freed by another call because the machine is gone
	}
	to, err := next(r.state, ev)
	if err != nil {
		l.log.Error("impossible transition", "resource", r.String(), "error", err)
		to = Doubtful
	}
	r.state = to
	if to == Free {
		l.forget(r)
	}
	if t != nil {
		t.resource(r)
	}
}

// newResource creates a Reserved resource and adds it to the tables.
func (l *ledger) newResource(key string, d vmm.Device, g vmm.Mount, parent *resource, retained bool) *resource {
	l.lastID++
	r := &resource{id: l.lastID, key: key, device: d, guest: g, parent: parent, retained: retained}
	l.enter(r, Reserved)
	return r
}

// enter adds a resource in the given state to the tables.
func (l *ledger) enter(r *resource, s State) {
	r.state, r.leases = s, map[*Lease]struct{}{}
	l.resources[r.id], l.byKey[r.key] = r, r
	if target := l.occupies(r.guest); target != "" {
		l.byTarget[target] = r
	}
	if r.device != nil {
		l.slots.mark(r.device, true)
	}
	if r.parent != nil {
		r.parent.children++
	}
}

// occupies returns the key of the guest location that only this mount may use, or "".
func (l *ledger) occupies(g vmm.Mount) string {
	if g == nil {
		return ""
	}
	return g.Key(l.machine.OS())
}

// forget removes a Free resource from the tables.
func (l *ledger) forget(r *resource) {
	delete(l.resources, r.id)
	if l.byKey[r.key] == r {
		delete(l.byKey, r.key)
	}
	if target := l.occupies(r.guest); target != "" && l.byTarget[target] == r {
		delete(l.byTarget, target)
	}
	if r.device != nil {
		l.slots.mark(r.device, false)
	}
	if r.parent != nil {
		r.parent.children--
	}
}

func (l *ledger) newLease(t *tx, c *Claim, role string, r *resource, w want) *Lease {
	l.lastID++
	le := &Lease{l: l, id: l.lastID, claim: c, role: role, res: r}
	le.describe(r)
	switch {
	case r.guest != nil:
		le.path = r.guest.Target()
	case w.path != nil:
		le.path = w.path(r.device)
	}
	r.leases[le] = struct{}{}
	c.leases = append(c.leases, le)
	t.lease(le)
	return le
}

// end removes a lease from its resource and its claim.
func (l *ledger) end(t *tx, le *Lease) {
	l.unlink(le)
	t.lease(le)
}

func (l *ledger) unlink(le *Lease) {
	if le.res != nil {
		delete(le.res.leases, le)
		le.res = nil
	}
	c := le.claim
	for i, other := range c.leases {
		if other == le {
			c.leases = append(c.leases[:i], c.leases[i+1:]...)
			return
		}
	}
}

// snapshot returns records with all resources, claims and leases.
func (l *ledger) snapshot() []record {
	var out []record
	for _, r := range l.resources {
		t := l.begin()
		t.resource(r)
		out = append(out, t.rec)
	}
	for _, c := range l.claims {
		t := l.begin()
		t.claim(c)
		for _, le := range c.leases {
			t.lease(le)
		}
		out = append(out, t.rec)
	}
	return out
}

func isGone(err error) bool { return errors.Is(err, vmm.ErrGone) }
