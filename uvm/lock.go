package uvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	lockName = "lock"
	// Neither flock nor LockFileEx can be given up once it waits, so waiting is asking again.
	lockPause    = 2 * time.Millisecond
	lockPauseMax = 100 * time.Millisecond
)

// lockDir takes the lock of a state directory and waits for it until ctx ends. The file names the
// process that holds it.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	for pause := lockPause; ; pause = min(2*pause, lockPauseMax) {
		f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		ok, err := tryLock(f)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
		}
		if ok && !inPlace(f) { // Remove was faster
			ok = false
		}
		if ok {
			text := fmt.Sprintf("%d\n", os.Getpid())
			if err := errors.Join(f.Truncate(0), writeAt(f, text)); err != nil {
				return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
			}
			return f, nil
		}
		holder, _ := os.ReadFile(f.Name())
		if err := f.Close(); err != nil {
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s: %w (process %s): %w", dir, ErrLocked,
				strings.TrimSpace(string(holder)), context.Cause(ctx))
		}
	}
}

// inPlace reports whether an open lock file is the one that others find.
func inPlace(f *os.File) bool {
	ours, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(f.Name())
	return err == nil && os.SameFile(ours, there)
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
	if os.Remove(lock.Name()) != nil { // Windows removes no file that is open
		open = false
		err = errors.Join(lock.Close(), os.Remove(lock.Name()))
	}
	_ = os.Remove(dir) // when it is not empty, somebody has just taken it up again
	return err
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}
