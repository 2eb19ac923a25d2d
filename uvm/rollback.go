package uvm

import (
	"context"
	"sync"
	"time"
)

type undoKey struct{}

// undoBudget is the shared deadline for rolling back a call.
type undoBudget struct {
	begin sync.Once
	end   time.Time
}

// WithRollbackBudget returns a context for a call of several steps: all rollbacks in it share one timeout, which
// starts with the first failure.
func WithRollbackBudget(ctx context.Context) context.Context {
	return context.WithValue(ctx, undoKey{}, new(undoBudget))
}

// RollbackContext returns a context for rolling back a call with ctx, even if ctx has ended. It ends after
// Options.RollbackTimeout; see WithRollbackBudget.
func (vm *UtilityVM) RollbackContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return vm.l.grace(ctx)
}

func (l *ledger) grace(ctx context.Context) (context.Context, context.CancelFunc) {
	end := time.Now().Add(l.undo)
	if b, ok := ctx.Value(undoKey{}).(*undoBudget); ok {
		b.begin.Do(func() { b.end = end })
		end = b.end
	}
	return context.WithDeadline(context.WithoutCancel(ctx), end)
}
