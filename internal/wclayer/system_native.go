package wclayer

import "log/slog"

var _ Host = (*System)(nil)

// NewNative is [New] with the platform of this system; usesDir is [Options.UsesDir]. Where the system
// is no Windows, what it makes answers [errors.ErrUnsupported].
func NewNative(log *slog.Logger, usesDir string) *System {
	return New(Options{API: Native(), Build: build(), Log: log, UsesDir: usesDir})
}
