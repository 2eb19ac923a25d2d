//go:build !unix && !windows

package filelock

import (
	"errors"
	"io/fs"
	"os"
)

func open(path string, flags int, perm fs.FileMode) (*os.File, error) {
	return os.OpenFile(path, flags, perm)
}

func tryLock(*os.File, bool) (bool, error) { return false, errors.ErrUnsupported }

func remove(path string) error { return os.Remove(path) }
