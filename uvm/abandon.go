package uvm

import (
	"context"
	"fmt"
	"slices"

	"github.com/stratavm/strata/vmm"
)

// Abandon drops all leases of the claim without detaching or unmounting anything, and ends the claim. It is for
// resources that the machine can no longer remove, such as a share whose server has died; they stay until the machine
// ends. Resources that other claims hold too remain usable and, except for host folder shares, shareable; the others
// are never used again, and a folder is shared anew on the next request. Abandon waits for changes of the resources in
// progress; if ctx ends first, it does nothing.
func (c *Claim) Abandon(ctx context.Context) error {
	l := c.l
	for {
		l.mu.Lock()
		var held []*resource
		for _, le := range c.leases {
			held = append(held, le.res)
		}
		ch := busyOf(held...)
		if ch == nil {
			break
		}
		l.mu.Unlock()
		if err := wait(ctx, ch); err != nil {
			return fmt.Errorf("abandon container %s: %w", c.id, err)
		}
	}
	defer l.mu.Unlock()
	if l.claims[c.id] != c {
		return nil
	}
	t := l.begin()
	var held []*resource
	for _, le := range slices.Clone(c.leases) {
		held = append(held, le.res)
		l.end(t, le)
	}
	for _, r := range held {
		l.strand(t, r)
	}
	c.phase = ended
	delete(l.claims, c.id)
	t.claim(c)
	return t.write()
}

// strand marks a resource, and the device below it, as retained until the machine ends. The ledger is locked.
func (l *ledger) strand(t *tx, r *resource) {
	for ; r != nil && !r.retained && r.state != Free; r = r.parent {
		r.retained = true
		_, share := r.device.(vmm.VirtioFSShare)
		_, mounted := r.guest.(vmm.MappedVirtioFS)
		used := len(r.leases) > 0 && !share && !mounted
		for _, m := range l.resources {
			used = used || !share && m.parent == r && len(m.leases) > 0
		}
		if !used {
			delete(l.byKey, r.key)
			r.key = fmt.Sprintf("abandoned|%d", r.id)
			l.byKey[r.key] = r
		}
		t.resource(r)
	}
}
