//go:build !linux

package network

import (
	"errors"
	"os"
)

// MakeNamespace makes a network namespace that a new file keeps.
func MakeNamespace(string) error { return errors.ErrUnsupported }

// MountNamespace mounts a network namespace whose file is open at path as well, which is a file.
func MountNamespace(*os.File, string) error { return errors.ErrUnsupported }
