package mounts

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// changes are the requests under way that change mounts, of all sessions. Those of a host that has disconnected are
// completed too.
type changes struct {
	mu    sync.Mutex
	under []chan struct{} // each closed when its change ends
}

// begin registers a change until end is called.
func (c *changes) begin() (end func()) {
	ended := make(chan struct{})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.under = append(c.under, ended)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.under = slices.DeleteFunc(c.under, func(u chan struct{}) bool { return u == ended })
		close(ended)
	}
}

// settle waits until the changes that were registered before it have ended.
func (c *changes) settle(ctx context.Context) error {
	c.mu.Lock()
	under := slices.Clone(c.under)
	c.mu.Unlock()
	for _, ended := range under {
		select {
		case <-ended:
		case <-ctx.Done():
			return fmt.Errorf("mounts are still being changed: %w: %w", gcsserver.ErrBusy, context.Cause(ctx))
		}
	}
	return nil
}

// Begin implements gcsserver.Runtime.
func (t *Table) Begin() (end func()) { return t.changes.begin() }

// Mounts implements gcsserver.Runtime.
func (t *Table) Mounts(ctx context.Context) ([]gcs.Mount, error) {
	ctx, cancel := context.WithTimeout(ctx, deviceTime)
	defer cancel()
	if err := t.changes.settle(ctx); err != nil {
		return nil, err
	}
	return t.known(), nil
}

// known returns the current mounts.
func (t *Table) known() []gcs.Mount {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]gcs.Mount, 0, len(t.mounts))
	for _, m := range t.mounts {
		out = append(out, m.what)
	}
	return out
}
