package applyengine

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/stratavm/strata/vmm"
)

// key is a name that a Change locks, exclusively or shared.
type key struct {
	name   string
	shared bool
}

// keysOf returns what a Change locks: exclusively its device and the path of its mount, and shared the device of its
// mount.
func keysOf(c vmm.Change, os vmm.OS) (out []key) {
	if c.Device != nil {
		out = append(out, key{name: c.Device.Addr()})
	}
	if c.Mount == nil {
		return out
	}
	place := c.Mount.Key(os)
	if place != "" {
		out = append(out, key{name: "guest " + place})
	}
	if on := vmm.RestsOn(c.Mount); on != "" && (c.Device == nil || on != c.Device.Addr()) {
		out = append(out, key{name: on, shared: place != ""})
	}
	return out
}

// locks are locks by name. A caller acquires all its locks at once, so that there are no deadlocks.
type locks struct {
	mu   sync.Mutex
	held map[string]*hold
}

// hold is a name that is locked.
type hold struct {
	shared bool
	users  int
	free   chan struct{} // closed when the last user has gone
}

// take acquires all keys, or none if ctx or life ends first.
func (l *locks) take(ctx, life context.Context, keys []key) error {
	for {
		at, wait := l.try(keys)
		if wait == nil {
			return nil
		}
		select {
		case <-wait:
		case <-life.Done():
			return context.Cause(life)
		case <-ctx.Done():
			return fmt.Errorf("wait for an earlier change at %s: %w", at, context.Cause(ctx))
		}
	}
}

// try acquires all keys, or returns one that is locked and a channel that is closed when it is released.
func (l *locks) try(keys []key) (at string, wait <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	taken := slices.IndexFunc(keys, func(k key) bool {
		h := l.held[k.name]
		return h != nil && !(h.shared && k.shared)
	})
	if taken >= 0 {
		return keys[taken].name, l.held[keys[taken].name].free
	}
	for _, k := range keys {
		h := l.held[k.name]
		if h == nil {
			h = &hold{shared: k.shared, free: make(chan struct{})}
			l.held[k.name] = h
		}
		h.users++
	}
	return "", nil
}

func (l *locks) free(keys []key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range keys {
		h := l.held[k.name]
		if h.users--; h.users == 0 {
			close(h.free)
			delete(l.held, k.name)
		}
	}
}
