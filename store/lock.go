package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// How often a lock that somebody else has is tried again.
const (
	firstWait   = 2 * time.Millisecond
	longestWait = 100 * time.Millisecond
)

// acquire opens and locks the file at path, waiting until ctx ends. Lock files may be removed by whoever
// holds them, so that a lock counts only when the file is still the one at path.
func acquire(ctx context.Context, path string, shared bool) (*os.File, error) {
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		f, err := tryAcquire(path, shared, os.O_CREATE)
		if f != nil || err != nil {
			return f, err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, fmt.Errorf("wait for the lock %s: %w", path, context.Cause(ctx))
		}
	}
}

// tryAcquire gives nil when somebody else has the lock, or removed the file.
func tryAcquire(path string, shared bool, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|flags, 0o644)
	if err != nil {
		return nil, explain(err)
	}
	ok, err := tryLock(f, shared)
	if err == nil && ok {
		var same bool
		if same, err = still(f, path); same {
			return f, nil
		}
	}
	return nil, errors.Join(err, f.Close())
}

// still reports whether f is the file at path.
func still(f *os.File, path string) (bool, error) {
	a, err := f.Stat()
	if err != nil {
		return false, err
	}
	b, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return os.SameFile(a, b), nil
}

// with runs f while holding the lock of the store.
func (s *Store) with(ctx context.Context, shared bool, f func() error) (err error) {
	l, err := acquire(ctx, s.path(lockName), shared)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	return f()
}

// temp is a folder below tmp. The lock says that its owner lives.
type temp struct {
	dir  string
	lock *os.File
}

func (s *Store) newTemp() (*temp, error) {
	for {
		id := strings.ToLower(rand.Text()[:16])
		path := s.path(tmpDir, id+".lock")
		// Somebody who sweeps may take the lock between its creation and ours: then take another.
		f, err := tryAcquire(path, false, os.O_CREATE|os.O_EXCL)
		if err != nil {
			return nil, err
		}
		if f == nil {
			continue
		}
		t := &temp{dir: s.path(tmpDir, id), lock: f}
		if err := os.Mkdir(t.dir, 0o700); err != nil {
			return nil, errors.Join(explain(err), t.remove())
		}
		return t, nil
	}
}

// TempDir makes a folder on the file system of the store for what an import needs for a while. remove
// removes it with all that is in it; after the end of this process, however it came, the next Open does.
func (s *Store) TempDir() (dir string, remove func() error, err error) {
	t, err := s.newTemp()
	if err != nil {
		return "", nil, fmt.Errorf("make a temporary folder in the store: %w", err)
	}
	return t.dir, t.remove, nil
}

// remove removes the folder, then the lock, so that no folder is ever without one.
func (t *temp) remove() error {
	if err := os.RemoveAll(t.dir); err != nil {
		return errors.Join(err, t.lock.Close())
	}
	return dropLock(t.lock)
}

// dropLock removes a lock file that is held and lets go of it.
func dropLock(f *os.File) error {
	err := os.Remove(f.Name())
	cerr := f.Close()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		// Windows does not remove open files; then it is removed unlocked. Nobody else can have taken it
		// for longer than to see that there is nothing.
		err = os.Remove(f.Name())
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, cerr)
}

// sweep removes the folders below tmp whose owners are gone.
func (s *Store) sweep(ctx context.Context) error {
	list, err := os.ReadDir(s.path(tmpDir))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range list {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		id, ok := strings.CutSuffix(e.Name(), ".lock")
		if !ok {
			continue
		}
		f, err := tryAcquire(s.path(tmpDir, e.Name()), false, 0)
		if err != nil || f == nil {
			if !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
			continue
		}
		s.o.Logger.Info("removing what a process left half done", "folder", filepath.Join(tmpDir, id))
		errs = append(errs, (&temp{dir: s.path(tmpDir, id), lock: f}).remove())
	}
	return errors.Join(errs...)
}
