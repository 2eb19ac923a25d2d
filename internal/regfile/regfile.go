// Package regfile opens and reads regular files from untrusted directories. A FIFO or device instead of a file is an
// error rather than blocking, and reads are limited.
package regfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// Errors of this package.
var (
	ErrNotRegular = errors.New("it is no regular file")
	ErrTooLarge   = errors.New("the file is too large")
)

// MaxState is the maximum size of a file that this program has written itself, in bytes.
const MaxState = 16 << 20

// Open opens a regular file for reading and returns its size in bytes.
func Open(path string) (*os.File, int64, error) {
	return check(path,
		func() (os.FileInfo, error) { return os.Stat(path) },
		func() (*os.File, error) { return os.OpenFile(path, os.O_RDONLY|nonblock, 0) })
}

// OpenIn is Open below a directory; no link leads out of it.
func OpenIn(root *os.Root, name string) (*os.File, int64, error) {
	return check(name,
		func() (os.FileInfo, error) { return root.Stat(name) },
		func() (*os.File, error) { return root.OpenFile(name, os.O_RDONLY|nonblock, 0) })
}

// OpenFile is os.OpenFile for regular files, existing ones or, with os.O_CREATE, new ones.
func OpenFile(path string, flags int, mode os.FileMode) (*os.File, error) {
	open := func() (*os.File, error) { return os.OpenFile(path, flags|nonblock, mode) }
	f, _, err := check(path, func() (os.FileInfo, error) { return os.Stat(path) }, open)
	if flags&os.O_CREATE == 0 || !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	if f, err = open(); err != nil {
		return nil, err
	}
	if _, err = regular(f, path); err != nil {
		return nil, err
	}
	return f, nil
}

func check(path string, stat func() (os.FileInfo, error), open func() (*os.File, error)) (*os.File, int64, error) {
	// Stat first: opening a device may have side effects.
	st, err := stat()
	if err != nil {
		return nil, 0, err
	}
	if !st.Mode().IsRegular() {
		return nil, 0, notRegular(path, st.Mode())
	}
	f, err := open()
	if err != nil {
		return nil, 0, err
	}
	// Check again: the file may have been replaced meanwhile.
	size, err := regular(f, path)
	if err != nil {
		return nil, 0, err
	}
	return f, size, nil
}

// regular returns the size of an open file. If the file is not regular, it closes it and returns an error.
func regular(f *os.File, path string) (size int64, err error) {
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = notRegular(path, st.Mode())
	}
	if err != nil {
		return 0, errors.Join(err, f.Close())
	}
	return st.Size(), nil
}

func notRegular(path string, m os.FileMode) error {
	kind := "a special one"
	switch {
	case m.IsDir():
		kind = "a directory"
	case m&os.ModeNamedPipe != 0:
		kind = "a FIFO"
	case m&os.ModeSocket != 0:
		kind = "a socket"
	case m&os.ModeDevice != 0:
		kind = "a device"
	}
	return fmt.Errorf("%s: %w but %s", path, ErrNotRegular, kind)
}

// ReadState is Read for files that this program has written itself.
func ReadState(path string) ([]byte, error) { return Read(path, MaxState) }

// Read returns the content of a regular file of at most limit bytes.
func Read(path string, limit int64) ([]byte, error) {
	f, size, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // it was only read
	if size > limit {
		return nil, fmt.Errorf("%s: %w: it has %d bytes, at most %d are read", path, ErrTooLarge, size, limit)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: %w: it grew beyond %d bytes", path, ErrTooLarge, limit)
	}
	return b, nil
}
