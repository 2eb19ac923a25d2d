package uvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/stratavm/strata/internal/lockfile"
)

const lockName = "lock"

// lockDir takes the lock of a state directory and waits for it until ctx ends. The file names the
// process that holds it.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := lockfile.Wait(ctx, path, false)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, cause) {
			holder, _ := lockfile.ReadFile(path)
			err = fmt.Errorf("%w (process %s): %w", ErrLocked, strings.TrimSpace(string(holder)), cause)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	text := fmt.Sprintf("%d\n", os.Getpid())
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
	open = false
	err = lockfile.Drop(lock)
	_ = os.Remove(dir) // when it is not empty, somebody has just taken it up again
	return err
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}
