package qemu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/stratavm/strata/internal/lockfile"
)

// portLock is the right to use a port of the guest. It ends with the process that holds it.
type portLock struct{ f *os.File }

func (l *portLock) unlock() { l.f.Close() }

// tryLockPort takes a port, or fails with ErrPortsTaken.
func tryLockPort(dir string, port int) (*portLock, error) {
	f, err := lockfile.Try(filepath.Join(dir, portLockName(port)), false, os.O_CREATE)
	if err == nil && f == nil {
		err = ErrPortsTaken
	}
	if err != nil {
		return nil, fmt.Errorf("port %d: %w", port, err)
	}
	return &portLock{f}, nil
}

// lockControl waits for the control port.
func lockControl(ctx context.Context, dir string) (*portLock, error) {
	f, err := lockfile.Wait(ctx, filepath.Join(dir, portLockName(controlPort)), false)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("another process controls the machine: %w", err)
	}
	if err != nil {
		return nil, err
	}
	return &portLock{f}, nil
}
