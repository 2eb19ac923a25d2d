package store

import (
	"context"
	"sync"
)

// flights lets goroutines that want the same thing share one call.
type flights struct {
	mu    sync.Mutex
	calls map[object]*flight
}

type flight struct {
	users  int
	cancel context.CancelFunc
	done   chan struct{}
	err    error // valid when done is closed
}

// do runs f, unless it is running for key already: then it waits for that. A caller whose ctx ends leaves;
// when the last one does, the call is cancelled and waited for. A call that failed for another caller,
// whose source may be worse than ours, is made again.
func (g *flights) do(ctx context.Context, key object, f func(context.Context) error) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		mine, err := g.once(ctx, key, f)
		if err == nil || mine || ctx.Err() != nil {
			return err
		}
	}
}

func (g *flights) once(ctx context.Context, key object, f func(context.Context) error) (mine bool, err error) {
	g.mu.Lock()
	c := g.calls[key]
	if c == nil {
		mine = true
		run, cancel := context.WithCancel(context.WithoutCancel(ctx))
		c = &flight{cancel: cancel, done: make(chan struct{})}
		if g.calls == nil {
			g.calls = map[object]*flight{}
		}
		g.calls[key] = c
		go func() {
			defer cancel()
			err := f(run)
			g.mu.Lock()
			c.err = err
			if g.calls[key] == c {
				delete(g.calls, key)
			}
			g.mu.Unlock()
			close(c.done)
		}()
	}
	c.users++
	g.mu.Unlock()

	select {
	case <-c.done:
		return mine, c.err
	case <-ctx.Done():
	}
	g.mu.Lock()
	c.users--
	last := c.users == 0
	if last && g.calls[key] == c {
		delete(g.calls, key) // the next caller begins anew
	}
	g.mu.Unlock()
	if last {
		c.cancel()
		<-c.done
		if c.err == nil {
			return mine, nil // it was done in time after all
		}
	}
	return mine, context.Cause(ctx)
}
