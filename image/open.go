package image

import (
	"fmt"
	"io"
	"os"
)

// openRegular opens a regular file and returns its size. Nothing else is opened, not even for a moment: opening
// a FIFO waits for a writer, and opening a device may do something.
func openRegular(path string) (*os.File, int64, error) {
	return checkRegular(path,
		func() (os.FileInfo, error) { return os.Stat(path) },
		func() (*os.File, error) { return os.OpenFile(path, os.O_RDONLY|nonblock, 0) })
}

// openRegularIn is openRegular below a directory, out of which no link leads.
func openRegularIn(root *os.Root, name string) (*os.File, int64, error) {
	return checkRegular(name,
		func() (os.FileInfo, error) { return root.Stat(name) },
		func() (*os.File, error) { return root.OpenFile(name, os.O_RDONLY|nonblock, 0) })
}

// checkRegular looks before it opens, and again afterwards since the file may have been replaced in between.
func checkRegular(name string, stat func() (os.FileInfo, error), open func() (*os.File, error)) (*os.File, int64, error) {
	st, err := stat()
	if err != nil {
		return nil, 0, err
	}
	if !st.Mode().IsRegular() {
		return nil, 0, notRegular(name, st.Mode())
	}
	f, err := open()
	if err != nil {
		return nil, 0, err
	}
	if st, err = f.Stat(); err == nil && !st.Mode().IsRegular() {
		err = notRegular(name, st.Mode())
	}
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, 0, err
	}
	return f, st.Size(), nil
}

func notRegular(name string, m os.FileMode) error {
	what := "a special file"
	switch {
	case m.IsDir():
		what = "a directory"
	case m&os.ModeNamedPipe != 0:
		what = "a FIFO"
	case m&os.ModeSocket != 0:
		what = "a socket"
	case m&os.ModeDevice != 0:
		what = "a device"
	}
	return fmt.Errorf("%s: %w: it is %s, and a regular file is wanted", name, ErrInvalid, what)
}

// readLimited reads at most limit bytes, and fails when there are more.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limit)
	}
	return b, err
}
