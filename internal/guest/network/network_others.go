//go:build !linux

package network

import (
	"errors"
	"os"
)

// MakeNamespace returns errors.ErrUnsupported on systems other than Linux.
func MakeNamespace(string) error { return errors.ErrUnsupported }

// MountNamespace returns errors.ErrUnsupported on systems other than Linux.
func MountNamespace(*os.File, string) error { return errors.ErrUnsupported }
