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

// Kill ends the server that has a folder, if there is one.
func Kill(context.Context, string) error { return nil }
