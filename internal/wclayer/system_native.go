package wclayer

import (
	"log/slog"
	"sync"
)

var _ Host = (*System)(nil)

// NewNative is [New] with the platform of this system; usesDir is [Options.UsesDir]. On systems other than Windows, all
// methods return [errors.ErrUnsupported].
func NewNative(log *slog.Logger, usesDir string) *System {
	return New(Options{API: Native(), Build: build(), Log: log, UsesDir: usesDir})
}

// Shared returns this process's System, which records mounts in DefaultUsesDir. All code that mounts layers must use
// it, because Prepare calls in a process must be serialized.
var Shared = sync.OnceValue(func() *System { return NewNative(slog.New(slog.DiscardHandler), DefaultUsesDir()) })
