// Package regfile opens and reads regular files that others may have put there. A FIFO or a device in the place
// of a file is an error at once, not a wait for ever, and a file is never read beyond a limit.
package regfile

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// Errors of this package.
var (
	ErrNotRegular = errors.New("it is no regular file")
	ErrTooLarge   = errors.New("the file is too large")
)

// Open opens a regular file for reading and returns its size in bytes.
func Open(path string) (*os.File, int64, error) {
	// Devices are not opened, not even for a moment: that may do something.
	st, err := os.Stat(path)
	if err != nil {
		return nil, 0, err
	}
	if !st.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s: %w", path, ErrNotRegular)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return nil, 0, err
	}
	// The file may have been replaced in between.
	if st, err = f.Stat(); err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s: %w", path, ErrNotRegular)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, st.Size(), nil
}

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
