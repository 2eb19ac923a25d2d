package mounts

import (
	"context"
	"sync"
)

// keyedLocks serialize the requests for the same key.
type keyedLocks struct {
	mu   sync.Mutex
	held map[string]*keyLock
}

type keyLock struct {
	turn   sync.Mutex
	users  int
	cancel context.CancelFunc // of the Add that holds it
}

// lock acquires the lock of key. A Remove cancels the context of an Add that holds the lock, which may be waiting for a
// device.
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
