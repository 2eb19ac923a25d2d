package hcs

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// detached runs f, which cannot be cancelled, and returns when it has returned or ctx has ended. In
// the latter case late gets the result when there is one.
func detached[T any](ctx context.Context, f func() T, late func(T)) (T, error) {
	var none T
	if err := context.Cause(ctx); err != nil {
		return none, err
	}
	var mu sync.Mutex
	abandoned := false
	done := make(chan T, 1)
	go func() {
		v := f()
		mu.Lock()
		defer mu.Unlock()
		if abandoned {
			late(v)
			return
		}
		done <- v
	}()
	select {
	case v := <-done:
		return v, nil
	case <-ctx.Done():
		mu.Lock()
		defer mu.Unlock()
		select {
		case v := <-done: // it came at the last moment
			return v, nil
		default:
			abandoned = true
			return none, context.Cause(ctx)
		}
	}
}

// overrunGrace is how long the end of a context is overrun.
const overrunGrace = time.Second

// overrun tidies up: it waits for f, also for a moment after ctx has ended, as the program may end next and
// would leave something. After that f goes on by itself.
func overrun(ctx context.Context, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
		return
	case <-ctx.Done():
	}
	select {
	case <-done:
	case <-time.After(overrunGrace):
	}
}

// closeDetached runs a function that gives handles back, and does not wait for it longer than until the end of ctx.
func closeDetached(ctx context.Context, op string, release func() error) error {
	var err error
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		err = release()
	}()
	select {
	case <-closed:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", op, context.Cause(ctx))
	}
}
