package uvm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/vmm"
)

// orphans is the id of the claim for resources that are attached but that no container holds, until they are removed.
// Claims does not list it; Recover releases it.
const orphans = "(orphans)"

// ledgerState is the state after replaying a journal.
type ledgerState struct {
	resources map[int]resourceEntry
	leases    map[int]leaseEntry
	claims    map[string]claimEntry
}

func replay(records []record) ledgerState {
	b := ledgerState{map[int]resourceEntry{}, map[int]leaseEntry{}, map[string]claimEntry{}}
	for _, rec := range records {
		for _, r := range rec.Resources {
			if b.resources[r.ID] = r; r.State == Free {
				delete(b.resources, r.ID)
			}
		}
		for _, le := range rec.Leases {
			if b.leases[le.ID] = le; le.Dropped {
				delete(b.leases, le.ID)
			}
		}
		for _, c := range rec.Claims {
			if b.claims[c.ID] = c; c.Phase == ended {
				delete(b.claims, c.ID)
			}
		}
	}
	return b
}

// recover reconciles the ledger with what is in the machine and rolls back what was in progress.
func (l *ledger) recover(ctx context.Context, records []record, obs vmm.Observation) error {
	l.mu.Lock()
	err := l.rebuild(replay(records), obs)
	if err == nil {
		// On a full disk, releasing still works; nothing is added until the journal can be rewritten.
		if cerr := l.journal.compact(l.snapshot()); cerr != nil {
			l.journal.stale = true
			l.log.Error("the journal could not be rewritten: nothing can be mounted until it can; free some space", "error",
				cerr)
		}
	}
	l.mu.Unlock()
	if err != nil {
		return err
	}
	// What cannot be rolled back now stays in its claim; the VM is usable all the same.
	if err := l.finishReleases(ctx); err != nil {
		l.log.Warn("the changes of an earlier process could not be rolled back yet", "error", err)
		if ctx.Err() != nil || isGone(err) {
			return err
		}
	}
	return nil
}

// Recover retries to remove what failed mounts and unmounts left behind, which Open has tried once. It is for callers
// that keep the VM open. Mounted containers are not affected.
func (vm *UtilityVM) Recover(ctx context.Context) error { return vm.l.finishReleases(ctx) }

func (l *ledger) rebuild(b ledgerState, obs vmm.Observation) error {
	observes := l.machine.Limits().Observes
	made := map[int]*resource{}
	// Devices come before the mounts on top of them: parents have lower ids.
	for _, id := range slices.Sorted(maps.Keys(b.resources)) {
		e := b.resources[id]
		if e.What == nil || e.What.Empty() {
			return fmt.Errorf("%w: resource %d has neither device nor mount", ErrJournal, id)
		}
		r := &resource{id: id, key: e.Key, device: e.What.Device, guest: e.What.Mount,
			parent: made[e.Parent], retained: e.Retained}
		l.lastID = max(l.lastID, id)
		l.enter(r, e.State)
		made[id] = r
		if ev, happened := verdict(r, obs, observes); happened {
			l.set(nil, r, ev)
		}
		l.countOn(r)
	}
	for _, d := range obs.Devices {
		l.slots.mark(d, true) // devices that are not in the ledger, too: their slots are taken
	}
	for _, id := range slices.Sorted(maps.Keys(b.claims)) {
		e := b.claims[id]
		if e.Phase == Mounting {
			e.Phase = Releasing // the process that was mounting it has ended
		}
		l.claims[id] = &Claim{l: l, id: id, phase: e.Phase, meta: e.Meta}
	}
	held := map[string]bool{}
	for _, id := range slices.Sorted(maps.Keys(b.leases)) {
		l.lastID = max(l.lastID, id)
		l.adopt(b.leases[id], made)
		held[b.leases[id].Claim] = true
	}
	for id := range held {
		if c := l.claims[id]; c != nil && len(c.leases) == 0 {
			c.phase = Releasing // everything it held is gone
		}
	}
	if observes {
		l.strays(obs)
	}
	for _, id := range slices.Sorted(maps.Keys(made)) {
		if r := made[id]; r.state != Free && r.refs() == 0 && !r.retained {
			l.orphan(r)
		}
	}
	return nil
}

// verdict returns the event that reconciles a resource of the journal with what was observed, if any.
func verdict(r *resource, obs vmm.Observation, observes bool) (event, bool) {
	if r.state == Reserved {
		return evCancel, true
	}
	if !observes {
		inMotion := r.state == Attaching || r.state == Detaching
		return evUnknown, inMotion
	}
	if r.device != nil {
		there := obs.Device(r.device.Addr())
		if there == nil || !sameFile(there, r.device) {
			return evLost, true
		}
		return evFound, true
	}
	if obs.Mount(r.guest) == nil {
		return evLost, true
	}
	return evFound, true
}

// sameFile reports whether two devices at the same address have the same file; if either has none, it assumes so.
func sameFile(a, b vmm.Device) bool {
	pa, pb := devicePath(a), devicePath(b)
	return pa == "" || pb == "" || hostpath.Identity(pa) == hostpath.Identity(pb)
}

func devicePath(d vmm.Device) string {
	switch d := d.(type) {
	case vmm.SCSIDisk:
		if d.Extents != nil {
			return ""
		}
		return d.Path
	case vmm.VPMEMDevice:
		return d.Path
	case vmm.VirtioFSShare:
		return d.Path
	}
	return ""
}

// countOn advances the name counters so that names of r are not used again.
func (l *ledger) countOn(r *resource) {
	bump := func(counter *int, text, prefix string, base int) {
		if digits, ok := strings.CutPrefix(text, prefix); ok {
			if n, err := strconv.ParseUint(digits, base, 31); err == nil {
				*counter = max(*counter, int(n))
			}
		}
	}
	switch d := r.device.(type) {
	case vmm.VSMBShare:
		bump(&l.vsmb, d.Name, "s", 16)
	case vmm.Plan9Share:
		next := l.plan9 - 1
		bump(&next, d.Name, "", 10)
		l.plan9 = next + 1
	}
	if r.guest != nil {
		bump(&l.mounts, r.guest.Target(), mountRoots[l.machine.OS()], 10)
	}
}

// adopt links a lease of the journal to its claim and resource. It ignores a lease without either, which a crash
// between two records leaves.
func (l *ledger) adopt(e leaseEntry, made map[int]*resource) {
	c, r := l.claims[e.Claim], made[e.Resource]
	if c == nil || r == nil {
		return
	}
	le := &Lease{l: l, id: e.ID, claim: c, role: e.Role, path: e.Path, res: r}
	le.describe(r)
	r.leases[le] = struct{}{}
	c.leases = append(c.leases, le)
	if r.state != Free {
		return
	}
	if c.phase == Mounted {
		l.log.Warn("something a container holds is not in the machine any more",
			"container", c.id, "resource", le.what)
	}
	l.follow(l.begin(), le)
}

// strays adds mounts that the ledger does not know, to be removed: a guest may complete a request of a process that
// has died in the meantime. Otherwise the devices below could never be removed.
func (l *ledger) strays(obs vmm.Observation) {
	byAddr := map[string]*resource{}
	known := map[string]bool{}
	for _, r := range l.resources {
		if r.device != nil {
			byAddr[r.device.Addr()] = r
		} else {
			known[mountName(r.guest)] = true
		}
	}
	// Combined mounts come last, so that they are released before the mounts on devices.
	for _, combined := range []bool{false, true} {
		for _, g := range obs.Mounts {
			on := vmm.RestsOn(g)
			if g.Target() == "" || known[mountName(g)] || combined == (on != "") {
				continue
			}
			l.log.Warn("removing a mount that is not in the ledger", "mount", g.String())
			l.lastID++
			r := &resource{id: l.lastID, key: fmt.Sprintf("stray|%d", l.lastID), guest: g, parent: byAddr[on]}
			l.enter(r, Attached)
			l.orphan(r)
		}
	}
}

func mountName(g vmm.Mount) string { return fmt.Sprintf("%T %s", g, g.Target()) }

func (l *ledger) orphan(r *resource) {
	c := l.claims[orphans]
	if c == nil {
		c = &Claim{l: l, id: orphans, phase: Releasing, meta: []byte("{}")}
		l.claims[orphans] = c
	}
	l.newLease(l.begin(), c, "orphan", r, want{})
}

// finishReleases completes the release of claims in phase Releasing, and releases the leases whose resources an
// earlier failure left in an intermediate state.
func (l *ledger) finishReleases(ctx context.Context) error {
	l.mu.Lock()
	var whole []*Claim
	var single []*Lease
	for _, c := range l.claims {
		if c.phase == Releasing {
			whole = append(whole, c)
			continue
		}
		for _, le := range c.leases {
			if le.res != nil && le.res.busy == nil && le.res.state != Attached && !le.res.retained {
				single = append(single, le)
			}
		}
	}
	l.mu.Unlock()
	var errs []error
	for _, c := range whole {
		errs = append(errs, c.Release(ctx, nil))
	}
	for _, le := range single {
		errs = append(errs, le.Release(ctx))
	}
	return errors.Join(errs...)
}
