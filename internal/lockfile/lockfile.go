// Package lockfile has locks between processes that are files. The system drops a lock with the
// process that holds it, however that ends, so that a lock also tells whether its owner lives. Files are
// opened such that they can be removed meanwhile, which Windows otherwise refuses.
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

// Neither flock nor LockFileEx can be given up once it waits, so waiting is asking again.

// Wait creates the file at path where there is none and takes its lock, waiting for whoever has it until
// ctx ends: then the error matches the cause of that. The lock is held until the file is closed.
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

// pause is how long one that has waited so long waits before it asks again: a short lock is taken soon after its
// release, and who has waited for seconds asks more often than those who have just come and would starve it.
func pause(waited time.Duration) time.Duration {
	switch {
	case waited < time.Second:
		return max(min(waited, 16*time.Millisecond), 2*time.Millisecond)
	case waited < 10*time.Second:
		return 4 * time.Millisecond
	}
	return time.Millisecond
}

// Try opens the file at path, with flags besides os.O_RDWR, and takes its lock without waiting. It
// returns nil when somebody else has the lock, or has just removed the file: a lock counts only while the
// file is the one that others find.
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

// Held reports whether somebody has the lock of the file at path alone. It writes nothing, not even where it may. A
// file that is not there is held by nobody.
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

// inPlace reports whether f is the file that has its name.
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

// Drop removes a file whose lock is held and releases it.
func Drop(f *os.File) error {
	err := remove(f.Name())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

// DropFolder removes a lock file that is held, as Drop does, and before it all else that is in its folder; the folder
// goes last. What cannot be removed is an error: then the lock is released, and the file stays with what is left.
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
	_ = os.Remove(dir) // when it is not empty, another process has just begun to use it
	return err
}

// Sweep calls ended for what processes left in a folder that have ended, however they did: each entry whose lock file
// is there and free. file returns the name of an entry's lock file below the folder, or "" for what has none; a
// file that is not regular is nobody's lock. ended gets the lock, and drops or closes it; or nil where the lock file
// is missing, because its owner has not come to create it, or has removed it just now. All entries are tried,
// until ctx ends, and all errors are returned.
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

// tryRegular is Try, but nil for what is not a regular file, which to open may block or have effects.
func tryRegular(path string) (*os.File, error) {
	fi, err := os.Lstat(path)
	if err != nil || !fi.Mode().IsRegular() {
		return nil, err
	}
	return Try(path, false, 0)
}

// ReadFile reads a lock file of at most regfile.MaxState bytes, whoever holds it, and does not keep it from being
// removed meanwhile.
func ReadFile(path string) ([]byte, error) {
	f, err := open(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, regfile.MaxState))
	return b, errors.Join(err, f.Close())
}
