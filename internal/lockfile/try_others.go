//go:build !unix && !windows

package lockfile

import (
	"errors"
	"os"
)

func try(*os.File, bool) (bool, error) { return false, errors.ErrUnsupported }

func open(path string, flags int) (*os.File, error) { return os.OpenFile(path, flags, 0o600) }

func remove(path string) error { return os.Remove(path) }
