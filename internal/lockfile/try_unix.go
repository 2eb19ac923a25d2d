//go:build unix

package lockfile

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/regfile"
)

func try(f *os.File, shared bool) (bool, error) {
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

func open(path string, flags int) (*os.File, error) { return regfile.OpenFile(path, flags, 0o600) }

func remove(path string) error { return os.Remove(path) }
