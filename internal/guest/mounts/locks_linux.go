package mounts

import (
	"context"
	"sync"
)

// keyedLocks let requests for one thing run one after the other.
type keyedLocks struct {
	mu   sync.Mutex
	held map[string]*keyLock
}

type keyLock struct {
	turn   sync.Mutex
	users  int
	cancel context.CancelFunc // of the Add that holds it
}

// lock waits for the turn of key. An Add that is under way, and may be waiting for a device, is given
// up when a Remove comes for the same thing.
func (k *keyedLocks) lock(ctx context.Context, key string, remove bool) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	k.mu.Lock()
	if k.held == nil {
		k.held = map[string]*keyLock{}
	}
	l := k.held[key]
	if l == nil {
		l = &keyLock{}
		k.held[key] = l
	}
	l.users++
	if remove && l.cancel != nil {
		l.cancel()
	}
	k.mu.Unlock()
	l.turn.Lock()
	if !remove {
		k.mu.Lock()
		l.cancel = cancel
		k.mu.Unlock()
	}
	return ctx, func() {
		cancel()
		k.mu.Lock()
		l.cancel = nil
		if l.users--; l.users == 0 {
			delete(k.held, key)
		}
		k.mu.Unlock()
		l.turn.Unlock()
	}
}
