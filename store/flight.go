package store

import (
	"context"
	"sync"
)

// flights deduplicates concurrent calls for the same key.
type flights struct {
	mu    sync.Mutex
	calls map[object]*flight
}

type flight struct {
	users  int
	cancel context.CancelFunc
	done   chan struct{}
	err    error // valid once done is closed
}

// do runs f, or waits for the result of a call in progress for key. A caller whose ctx ends returns at once; the last
// one cancels the call and waits for it. If a call of another caller failed, do runs f itself, as its source may work.
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
		delete(g.calls, key) // the next caller starts a new call
	}
	g.mu.Unlock()
	if last {
		c.cancel()
		<-c.done
		if c.err == nil {
			return mine, nil // it completed just in time
		}
	}
	return mine, context.Cause(ctx)
}
