package layerdir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/stratavm/strata/internal/atomicfile"
	"github.com/stratavm/strata/internal/lockfile"
)

// output is a file that is written atomically. It is written in a temporary folder next to its final folder, which is
// created only when the file is complete.
type output struct {
	file *os.File
	dir  string
	name string
	made []string // folders that newOutput created, outermost first
	done bool
	// lent: make the file readable by all, if its folder is private: a VMM that runs as another user reopens the
	// descriptor that it is passed, which needs read permission.
	lent bool

	work string   // the temporary folder, private
	lock *os.File // lock file in work, held as long as this process lives
}

// The names of temporary folders, and of the lock in each. If the lock is free, the process was killed; the next
// newOutput next to it removes the folder.
const (
	workPrefix, workSuffix = ".strata-", ".tmp"
	workLock               = "lock"
)

func newOutput(dir, name string) (*output, error) {
	o := &output{dir: dir, name: name}
	parent := filepath.Dir(dir)
	if err := o.mkdirAll(parent); err != nil {
		return nil, errors.Join(err, o.removeMade())
	}
	sweep(parent)
	err := o.makeWork(parent)
	if err == nil {
		o.file, err = os.OpenFile(filepath.Join(o.work, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	}
	if err != nil {
		return nil, errors.Join(explain(err), o.removeWork(), o.removeMade())
	}
	return o, nil
}

// makeWork creates the temporary folder and takes its lock.
func (o *output) makeWork(parent string) error {
	for {
		work, err := os.MkdirTemp(parent, workPrefix+"*"+workSuffix)
		if err != nil {
			return err
		}
		o.lock, err = lockfile.Try(filepath.Join(work, workLock), false, os.O_CREATE)
		if o.lock != nil {
			o.work = work
			return nil
		}
		// A concurrent sweep may have removed it before the lock was taken.
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(err, os.RemoveAll(work))
		}
	}
}

// removeWork removes the temporary folder, its lock last.
func (o *output) removeWork() error {
	if o.lock == nil {
		return nil
	}
	lock := o.lock
	o.lock = nil
	return removeLocked(o.work, lock)
}

// removeLocked removes a temporary folder whose lock is held, and releases the lock.
func removeLocked(work string, lock *os.File) error {
	entries, err := os.ReadDir(work)
	for _, e := range entries {
		if e.Name() != workLock {
			err = errors.Join(err, os.RemoveAll(filepath.Join(work, e.Name())))
		}
	}
	if err != nil {
		return errors.Join(err, lock.Close())
	}
	if err := lockfile.Drop(lock); err != nil {
		return err
	}
	if err := os.Remove(work); err != nil && !errors.Is(err, fs.ErrNotExist) { // a concurrent sweep was faster
		return err
	}
	return nil
}

// sweep removes the temporary folders of killed processes. Folders that cannot be removed, such as those of other
// users, are ignored.
func sweep(parent string) {
	locks := func(e fs.DirEntry) string {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), workPrefix) || !strings.HasSuffix(e.Name(), workSuffix) {
			return ""
		}
		return filepath.Join(e.Name(), workLock)
	}
	_ = lockfile.Sweep(context.Background(), parent, locks, func(name string, lock *os.File) error {
		work := filepath.Join(parent, name)
		if lock == nil {
			return os.Remove(work) // fails unless it is empty
		}
		return removeLocked(work, lock)
	})
}

// writeFile writes a small file atomically, replacing an existing one.
func writeFile(dir, name string, b []byte) (err error) {
	out, err := newOutput(dir, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.abandon()) }()
	if _, err := out.file.Write(b); err != nil {
		return explain(err)
	}
	return out.commit(true)
}

// mkdirAll is os.MkdirAll, but records the folders that it creates.
func (o *output) mkdirAll(dir string) error {
	if st, err := os.Stat(dir); err == nil {
		if !st.IsDir() {
			return fmt.Errorf("%s: %w", dir, syscall.ENOTDIR)
		}
		return nil
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := o.mkdirAll(parent); err != nil {
			return err
		}
	}
	switch err := os.Mkdir(dir, 0o700); {
	case err == nil:
		o.made = append(o.made, dir)
	case !errors.Is(err, fs.ErrExist):
		return explain(err)
	}
	return nil
}

// commit syncs the file and renames it to its final name. Unless replace is set, it fails with fs.ErrExist if the name
// exists.
func (o *output) commit(replace bool) error {
	if err := o.file.Sync(); err != nil {
		return explain(err)
	}
	tmp := o.file.Name()
	if err := o.file.Close(); err != nil {
		return explain(err)
	}
	if err := o.mkdirAll(o.dir); err != nil {
		return err
	}
	if fi, err := os.Stat(o.dir); o.lent && err == nil && fi.Mode().Perm()&0o077 == 0 {
		if err := os.Chmod(tmp, 0o644); err != nil {
			return err
		}
	}
	path := filepath.Join(o.dir, o.name)
	if replace {
		if err := os.Rename(tmp, path); err != nil {
			return err
		}
		o.done = true
	} else {
		// Link fails if the name exists; rename has no such option on all systems.
		if err := os.Link(tmp, path); err != nil {
			return err
		}
		o.done = true
	}
	return errors.Join(o.removeWork(), atomicfile.SyncDir(o.dir), atomicfile.SyncDir(filepath.Dir(o.dir)))
}

// abandon removes everything that was created, unless it was committed. It is idempotent.
func (o *output) abandon() error {
	if o.done || o.file == nil {
		return nil
	}
	o.done = true
	closeErr := o.file.Close()
	if errors.Is(closeErr, os.ErrClosed) {
		closeErr = nil
	}
	return errors.Join(closeErr, o.removeWork(), o.removeMade())
}

// removeMade removes the created folders as long as they are empty: another process may have put something there.
func (o *output) removeMade() error {
	for i := len(o.made) - 1; i >= 0; i-- {
		if err := os.Remove(o.made[i]); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			break
		}
	}
	o.made = nil
	return nil
}

// explain adds a remedy to errors that the user can fix.
func explain(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("%w: free some space, or choose a folder on another file system", err)
	case errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: the disk quota is used up", err)
	}
	return err
}
