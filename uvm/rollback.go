package uvm

import (
	"context"
	"sync"
	"time"
)

type undoKey struct{}

// undoBudget is the end of the time in which what a call began is to be taken back.
type undoBudget struct {
	begin sync.Once
	end   time.Time
}

// WithRollbackBudget returns a context for a call of several steps: all that is taken back for it shares one grace,
// which begins with the first failure.
func WithRollbackBudget(ctx context.Context) context.Context {
	return context.WithValue(ctx, undoKey{}, new(undoBudget))
}

// RollbackContext returns the context in which to take back what a call with ctx, which may have ended, began. It ends
// after Options.RollbackTimeout; see WithRollbackBudget.
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
