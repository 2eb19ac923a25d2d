// Package lockfile has file locks between processes. The system releases a lock when the process that holds it ends, so
// that a lock also tells whether its owner is alive. On Windows, files are opened so that they can be removed while
// open.
package lockfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/stratavm/strata/internal/regfile"
)

// A blocking flock or LockFileEx cannot be cancelled, so Wait polls.

// Wait creates the file at path unless it exists, and blocks until it has its lock or ctx ends; then the error matches
// the cause of ctx. The lock is held until the file is closed.
func Wait(ctx context.Context, path string, shared bool) (*os.File, error) {
	begin := time.Now()
	for {
		f, err := Try(path, shared, os.O_CREATE)
		if f != nil || err != nil {
			return f, err
		}
		t := time.NewTimer(pause(time.Since(begin)))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, fmt.Errorf("wait for the lock %s: %w", path, context.Cause(ctx))
		}
	}
}

// pause returns the poll interval after a time of waiting. It is short at first, so that a briefly held lock is
// acquired soon, and again after seconds, so that new waiters do not starve an old one.
func pause(waited time.Duration) time.Duration {
	switch {
	case waited < time.Second:
		return max(min(waited, 16*time.Millisecond), 2*time.Millisecond)
	case waited < 10*time.Second:
		return 4 * time.Millisecond
	}
	return time.Millisecond
}

// Try opens the file at path, with flags in addition to os.O_RDWR, and acquires its lock without blocking. It returns
// nil if the lock is held, or if the file was removed meanwhile: the lock of a removed file excludes nobody.
func Try(path string, shared bool, flags int) (*os.File, error) {
	f, err := open(path, os.O_RDWR|flags)
	if err != nil {
		return nil, err
	}
	ok, err := try(f, shared)
	if err == nil && ok {
		var same bool
		if same, err = inPlace(f); same {
			return f, nil
		}
	}
	if err != nil {
		err = fmt.Errorf("lock %s: %w", path, err)
	}
	return nil, errors.Join(err, f.Close())
}

// Held reports whether the lock of the file at path is held exclusively. It does not write. A missing file is not held.
func Held(path string) (bool, error) {
	f, err := open(path, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	free, err := try(f, true)
	if err != nil {
		err = fmt.Errorf("lock %s: %w", path, err)
	}
	return !free, errors.Join(err, f.Close())
}

// inPlace reports whether the name of f still refers to f.
func inPlace(f *os.File) (bool, error) {
	ours, err := f.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Stat(f.Name())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return os.SameFile(ours, there), nil
}

// Drop removes a file whose lock the caller holds, and releases the lock.
func Drop(f *os.File) error {
	err := remove(f.Name())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

// DropFolder removes a directory with its contents, of which f is the lock file held by the caller; f is removed last.
// If something cannot be removed it returns an error, and f is kept and its lock released.
func DropFolder(f *os.File) error {
	dir, name := filepath.Split(f.Name())
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if e.Name() != name {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	err = Drop(f)
	_ = os.Remove(dir) // if it is not empty, another process has started to use it
	return err
}

// Sweep calls ended for each entry of a directory whose owner has ended: its lock file is free or missing. file returns
// the name of an entry's lock file below the directory, or "" for none; files that are not regular are ignored. ended
// gets the lock, which it must drop or close, or nil if the lock file is missing, because its owner has not created it
// yet or has just removed it. Sweep tries all entries, until ctx ends, and joins the errors.
func Sweep(ctx context.Context, dir string, file func(fs.DirEntry) string,
	ended func(name string, lock *os.File) error) error {
	entries, err := os.ReadDir(dir)
	errs := []error{err}
	for _, e := range entries {
		if ctx.Err() != nil {
			errs = append(errs, context.Cause(ctx))
			break
		}
		name := file(e)
		if name == "" {
			continue
		}
		lock, err := tryRegular(filepath.Join(dir, name))
		missing := errors.Is(err, fs.ErrNotExist)
		switch {
		case missing || lock != nil:
			errs = append(errs, ended(e.Name(), lock))
		case err != nil:
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// tryRegular is Try, but returns nil for a file that is not regular, because opening that may block or have side
// effects.
func tryRegular(path string) (*os.File, error) {
	fi, err := os.Lstat(path)
	if err != nil || !fi.Mode().IsRegular() {
		return nil, err
	}
	return Try(path, false, 0)
}

// ReadFile reads a lock file of at most regfile.MaxState bytes, also while it is locked, and does not prevent its
// removal.
func ReadFile(path string) ([]byte, error) {
	f, err := open(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, regfile.MaxState))
	return b, errors.Join(err, f.Close())
}
