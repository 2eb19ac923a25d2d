//go:build !linux

package guest

import (
	"context"
	"errors"
	"log/slog"
)

// Main is the agent of a Linux guest; elsewhere it fails at once.
func Main(context.Context) int { return 1 }

// Run is the agent of a Linux guest; elsewhere it returns errors.ErrUnsupported.
func Run(context.Context, Config) error { return errors.ErrUnsupported }

// NewContainers returns errors.ErrUnsupported on systems other than Linux.
func NewContainers(*slog.Logger, string, string) (Containers, error) {
	return nil, errors.ErrUnsupported
}
