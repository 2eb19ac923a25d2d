//go:build !linux

package store

import (
	"context"
	"errors"
)

func hashTree(context.Context, string) (string, error) { return "", errors.ErrUnsupported }
