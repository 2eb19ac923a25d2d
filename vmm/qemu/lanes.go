package qemu

import (
	"context"
	"sync"
)

// lanes lets one call at a time work with an address. A call takes all its addresses at once, so that
// two calls cannot wait for each other.
type lanes struct {
	mu   sync.Mutex
	busy map[string]chan struct{} // closed when the address gets free
}

// take waits until all addresses are free and returns what frees them again.
func (l *lanes) take(ctx context.Context, addresses []string) (release func(), err error) {
	for {
		wait := l.tryTake(addresses)
		if wait == nil {
			return func() { l.free(addresses) }, nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (l *lanes) tryTake(addresses []string) (wait <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range addresses {
		if ch, taken := l.busy[a]; taken {
			return ch
		}
	}
	if l.busy == nil {
		l.busy = map[string]chan struct{}{}
	}
	ch := make(chan struct{})
	for _, a := range addresses {
		l.busy[a] = ch
	}
	return nil
}

func (l *lanes) free(addresses []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, a := range addresses {
		if i == 0 {
			close(l.busy[a])
		}
		delete(l.busy, a)
	}
}
