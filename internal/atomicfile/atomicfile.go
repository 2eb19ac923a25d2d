// Package atomicfile writes files that are there as a whole or not at all: the content goes to a temporary
// file in the same folder, which then takes the name, in place of what had it.
//
// Ours, and neither github.com/natefinch/atomic nor github.com/google/renameio: callers differ in what they
// sync and have to find what a killed process left, and renameio is not for Windows.
package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Prefix is what the names of temporary files begin with.
const Prefix = ".new-"

// Options of a file. The zero value is good for what need not survive a crash of the system.
type Options struct {
	Mode fs.FileMode // 0: 0o600
	// Sync makes the file last: its content before it takes the name, then the name.
	Sync bool
}

// File is a file being written. It has no name of its own before Commit.
type File struct {
	*os.File
	path string
	o    Options
	done bool
}

// Create begins the file at path. The caller ends with Commit or Abandon.
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

// Commit closes the file and gives it its name. When that fails nothing is left of it.
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

// Write makes b the content of the file at path.
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

// Sweep removes from a folder what processes left that were killed while they wrote. The caller makes sure
// that nobody writes there.
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
