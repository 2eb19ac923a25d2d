//go:build !linux

package slirp

import (
	"context"
	"errors"
	"fmt"
	"runtime"
)

// Start starts a server.
func Start(context.Context, Config) (*Server, error) {
	_ = forwardRequest // for Linux
	return nil, fmt.Errorf("networks of containers on a %s host: %w", runtime.GOOS, errors.ErrUnsupported)
}

// Kill does nothing.
func Kill(context.Context, string) error { return nil }
