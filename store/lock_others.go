//go:build !unix && !windows

package store

import (
	"errors"
	"os"
)

func tryLock(*os.File, bool) (bool, error) { return false, errors.ErrUnsupported }

func syncDir(string) error { return nil }
