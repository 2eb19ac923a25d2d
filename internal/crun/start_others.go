//go:build !linux

package crun

import (
	"context"
	"errors"
	"os"
)

func (b Bundle) start(context.Context, Process, string, string, ...string) (int, *os.File, error) {
	return 0, nil, errors.ErrUnsupported
}

// New returns an error that matches errors.ErrUnsupported: containers run on Linux only.
func New(Starter) (*Runtime, error) { return nil, errors.ErrUnsupported }
