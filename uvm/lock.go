package uvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/stratavm/strata/internal/filelock"
)

const lockName = "lock"

// lockDir takes the lock of a state directory and waits for it until ctx ends. The file names the
// process that holds it.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	f, err := filelock.Lock(ctx, filepath.Join(dir, lockName), 0o600, false)
	if errors.Is(err, filelock.ErrHeld) {
		return nil, fmt.Errorf("lock %s: %w: %w", dir, ErrLocked, err)
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	text := fmt.Sprintf("process %d\n", os.Getpid())
	if err := errors.Join(f.Truncate(0), writeAt(f, text)); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// Remove deletes the state directory of a VM that does not run any more, with everything in it. It
// takes the lock first, then asks running; when that says yes it fails and deletes nothing. A
// directory that does not exist is no error.
func Remove(ctx context.Context, dir string, running func() (bool, error)) (err error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := lockDir(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // somebody else removed it
	}
	if err != nil {
		return err
	}
	open := true
	defer func() {
		if open {
			err = errors.Join(err, lock.Close())
		}
	}()
	switch yes, err := running(); {
	case err != nil:
		return fmt.Errorf("remove %s: %w", dir, err)
	case yes:
		return fmt.Errorf("remove %s: the VM runs", dir)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	for _, e := range entries {
		if e.Name() != lockName {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	open, err = false, filelock.Remove(lock)
	_ = os.Remove(dir) // when it is not empty, somebody has just taken it up again
	return err
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}
