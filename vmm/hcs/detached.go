package hcs

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// detached runs f, which cannot be cancelled, and returns when f has returned or ctx has ended. If ctx ends first, late
// is called with the result of f once there is one.
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
		case v := <-done: // it returned at the same moment
			return v, nil
		default:
			abandoned = true
			return none, context.Cause(ctx)
		}
	}
}

// overrunGrace bounds how long overrun waits after the end of a context.
const overrunGrace = time.Second

// overrun runs f, which cleans up, and waits for it, even a moment longer than ctx: the program may exit next and would
// leave something behind. After that f continues in the background.
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

// closeDetached runs release, which closes handles, and waits for it until ctx ends.
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
