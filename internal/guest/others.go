//go:build !linux

package guest

import (
	"context"
	"errors"
	"log/slog"
)

// Main is the agent of a Linux guest; elsewhere it fails at once.
func Main(context.Context) int { return 1 }

// Run is the agent of a Linux guest; elsewhere it answers errors.ErrUnsupported.
func Run(context.Context, Config) error { return errors.ErrUnsupported }

// NewContainers is about Linux; elsewhere it answers errors.ErrUnsupported.
func NewContainers(*slog.Logger, string, string) (Containers, error) {
	return nil, errors.ErrUnsupported
}
