// Package filelock has locks between processes: files that are locked while they are open, which the
// system lets go of with the process. Whoever holds a lock may remove its file; a lock counts only
// while its file is the one that others find. Files are opened such that they can be removed, which
// Windows otherwise refuses while anybody has them open.
//
// All functions may be called concurrently, by any number of processes.
package filelock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"
)

// Neither flock nor LockFileEx can be given up once it waits, so waiting is asking again.
const (
	firstPause   = 2 * time.Millisecond
	longestPause = 100 * time.Millisecond
)

// ErrHeld: somebody else had the lock until the context ended.
var ErrHeld = errors.New("the lock is held")

// Lock opens the file at path, which it makes with perm where there is none, and locks it. It waits until
// ctx ends; then the error matches [ErrHeld] and the context's cause, and shows what the holder wrote
// into the file. Closing the file unlocks it.
func Lock(ctx context.Context, path string, perm fs.FileMode, shared bool) (*os.File, error) {
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		f, err := Try(path, os.O_CREATE, perm, shared)
		if f != nil || err != nil {
			return f, err
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			text, _ := ReadFile(path) // it only makes the error better
			if len(text) > 100 {
				text = text[:100]
			}
			return nil, fmt.Errorf("wait for %s: %w (%q): %w", path, ErrHeld, strings.TrimSpace(string(text)), context.Cause(ctx))
		}
	}
}

// Try is Lock without waiting. flags are 0, or os.O_CREATE with or without os.O_EXCL. It gives nil when
// somebody else has the lock, or removed the file just now.
func Try(path string, flags int, perm fs.FileMode, shared bool) (*os.File, error) {
	f, err := open(path, os.O_RDWR|flags, perm)
	if err != nil {
		return nil, err
	}
	ok, err := tryLock(f, shared)
	if err == nil && ok {
		if ok, err = inPlace(f); ok {
			return f, nil
		}
	}
	return nil, errors.Join(err, f.Close())
}

// inPlace reports whether an open lock file is the one that others find.
func inPlace(f *os.File) (bool, error) {
	ours, err := f.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Stat(f.Name())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(ours, there), err
}

// Remove removes a lock file that is held and lets go of it. A file that is gone is no error.
func Remove(f *os.File) error {
	err := remove(f.Name())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

// ReadFile reads a lock file, whoever holds it, and does not keep it from being removed meanwhile.
func ReadFile(path string) ([]byte, error) {
	f, err := open(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(f)
	return b, errors.Join(err, f.Close())
}
