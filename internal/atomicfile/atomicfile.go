// Package atomicfile writes files atomically: the content is written to a temporary file in the same directory, which
// is then renamed and replaces an existing file.
//
// github.com/natefinch/atomic and github.com/google/renameio are not used: callers differ in what they sync and must
// find the temporary files of killed processes, and renameio does not support Windows.
package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Prefix is the prefix of the names of temporary files.
const Prefix = ".new-"

// Options of a file. The zero value is for files that need not survive a crash of the system.
type Options struct {
	Mode fs.FileMode // 0: 0o600
	// Sync makes the file durable: its content is synced before the rename, its directory after it.
	Sync bool
}

// File is a file being written. It does not appear under its name before Commit.
type File struct {
	*os.File
	path string
	o    Options
	done bool
}

// Create begins writing the file at path. The caller must call Commit or Abandon.
func Create(path string, o Options) (*File, error) {
	if o.Mode == 0 {
		o.Mode = 0o600
	}
	f, err := os.CreateTemp(filepath.Dir(path), Prefix+"*")
	if err != nil {
		return nil, err
	}
	return &File{File: f, path: path, o: o}, nil
}

// Commit closes the file and renames it to its name. On error the temporary file is removed.
func (f *File) Commit() error {
	err := f.Chmod(f.o.Mode)
	if err == nil && f.o.Sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), f.path)
	}
	if err != nil {
		return errors.Join(err, f.Abandon())
	}
	f.done = true
	if f.o.Sync {
		return SyncDir(filepath.Dir(f.path))
	}
	return nil
}

// Abandon removes the file, unless it was committed or abandoned before.
func (f *File) Abandon() error {
	if f.done {
		return nil
	}
	f.done = true
	err := f.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	return errors.Join(err, os.Remove(f.Name()))
}

// Write atomically writes b to the file at path.
func Write(path string, b []byte, o Options) error {
	f, err := Create(path, o)
	if err != nil {
		return err
	}
	if _, err := f.File.Write(b); err != nil {
		return errors.Join(err, f.Abandon())
	}
	return f.Commit()
}

// Sweep removes the temporary files of killed processes from a directory. The caller must ensure that nothing is being
// written there.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	errs := []error{err}
	for _, e := range entries {
		if e.Type().IsRegular() && strings.HasPrefix(e.Name(), Prefix) {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
