package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/stratavm/strata/internal/lockfile"
)

// with runs f while holding the lock of the store, shared or exclusively.
func (s *Store) with(ctx context.Context, shared bool, f func() error) (err error) {
	l, err := lockfile.Wait(ctx, s.path(lockName), shared)
	if err != nil {
		return explain(err)
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	return f()
}

// temp is a folder below tmp. Its lock is held as long as the owner lives.
type temp struct {
	dir  string
	lock *os.File
}

func (s *Store) newTemp() (*temp, error) {
	for {
		id := strings.ToLower(rand.Text()[:16])
		path := s.path(tmpDir, id+".lock")
		// A concurrent sweep may take the lock right after its creation: then try another id.
		f, err := lockfile.Try(path, false, os.O_CREATE|os.O_EXCL)
		if err != nil {
			return nil, explain(err)
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

// TempDir creates a temporary folder on the file system of the store. The caller must call remove, which removes it
// with its contents; if the process dies, the next Open does.
func (s *Store) TempDir() (dir string, remove func() error, err error) {
	t, err := s.newTemp()
	if err != nil {
		return "", nil, fmt.Errorf("make a temporary folder in the store: %w", err)
	}
	return t.dir, t.remove, nil
}

// remove removes the folder, then the lock, so that no folder is ever without a lock.
func (t *temp) remove() error {
	if err := removeAll(t.dir); err != nil {
		return errors.Join(err, t.lock.Close())
	}
	return lockfile.Drop(t.lock)
}

// removeAll is os.RemoveAll, but retries for up to two seconds on Windows: there a file cannot be removed while it is
// open, and the files of a chain are those of a layer, which another process may be reading.
func removeAll(dir string) error {
	for attempt := 0; ; attempt++ {
		err := os.RemoveAll(dir)
		if err == nil || runtime.GOOS != "windows" || attempt == 100 {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// sweep removes the folders below tmp whose owners have died.
func (s *Store) sweep(ctx context.Context) error {
	locks := func(e fs.DirEntry) string {
		if !strings.HasSuffix(e.Name(), ".lock") {
			return ""
		}
		return e.Name()
	}
	return lockfile.Sweep(ctx, s.path(tmpDir), locks, func(name string, lock *os.File) error {
		if lock == nil {
			return nil // removed in the meantime
		}
		id := strings.TrimSuffix(name, ".lock")
		s.o.Logger.Info("removing the temporary folder of a process that died", "folder", filepath.Join(tmpDir, id))
		return (&temp{dir: s.path(tmpDir, id), lock: lock}).remove()
	})
}
