package wclayer

import (
	"log/slog"
	"sync"
)

var _ Host = (*System)(nil)

// NewNative is [New] with the platform of this system; usesDir is [Options.UsesDir]. Where the system
// is no Windows, what it makes answers [errors.ErrUnsupported].
func NewNative(log *slog.Logger, usesDir string) *System {
	return New(Options{API: Native(), Build: build(), Log: log, UsesDir: usesDir})
}

// Shared is this process's System of this Windows host, which notes what it mounts in DefaultUsesDir. The platform
// wants the preparations of layers in a process to follow each other, so all that mount use this one.
var Shared = sync.OnceValue(func() *System { return NewNative(slog.New(slog.DiscardHandler), DefaultUsesDir()) })
