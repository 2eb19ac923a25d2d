package uvm

import (
	"context"
	"fmt"
	"slices"

	"github.com/stratavm/strata/vmm"
)

// Abandon gives up all that the claim still holds, and takes nothing of it away: it is for what the machine cannot let
// go of any more, such as a share whose server has died. It stays in the machine until that ends. What others hold too
// they keep, and but for a folder of the host it may be shared as before; what nobody holds is not used again, and a
// folder is shared anew. The claim ends. When ctx ends while
// another change of these things is under way, nothing is given up.
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

// strand has a resource stay as long as the machine, and what it rests on. The ledger is locked.
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
