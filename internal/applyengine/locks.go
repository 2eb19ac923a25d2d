package applyengine

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/stratavm/strata/vmm"
)

// key is a name that a Change locks, alone or together with others that share it.
type key struct {
	name   string
	shared bool
}

// keysOf returns what a Change locks: its device, the place of its mount, and, shared with other mounts,
// the device that its mount rests on.
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

// locks are locks by name. All that a caller needs are taken at once, so that no two callers wait for
// each other.
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

// take waits until all keys are to be had and takes them, or none when ctx or life ends first.
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

// try takes all keys, or returns one that is not to be had and what to wait for.
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
