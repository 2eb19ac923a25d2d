package mounts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// CheckPath returns an error unless a path is one where a host may mount: absolute, clean, and below the base
// directory.
func (t *Table) CheckPath(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsRune(path, 0) {
		return fmt.Errorf("path %q has to be absolute, without \"..\" and trailing slashes: %w", path, gcsserver.ErrInvalid)
	}
	if !strings.HasPrefix(path, t.base+"/") {
		return fmt.Errorf("path %q is not below %s: %w", path, t.base, gcsserver.ErrInvalid)
	}
	return nil
}

// openPath opens a directory or file by O_PATH, without following any symbolic link, which a container might have
// planted.
func openPath(path string) (*os.File, error) {
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	dir := os.NewFile(uintptr(fd), "/")
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		next, err := openChild(dir, part)
		dir.Close()
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		dir = next
	}
	return dir, nil
}

func openChild(dir *os.File, name string) (*os.File, error) {
	if name == "" {
		name = "."
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		unix.Close(fd)
		return nil, fmt.Errorf("%q is a symbolic link: %w", name, unix.ELOOP)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// madePath is an open directory with the directories that were created for it.
type madePath struct {
	dir  *os.File
	made []string // paths that were created, outermost first
}

// makePath opens a directory as openPath does, and creates missing components of the path.
func makePath(path string, mode uint32) (*madePath, error) {
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	m := &madePath{dir: os.NewFile(uintptr(fd), "/")}
	at := ""
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		at += "/" + part
		err := unix.Mkdirat(int(m.dir.Fd()), part, mode)
		if err == nil {
			m.made = append(m.made, at)
		} else if !errors.Is(err, unix.EEXIST) {
			m.undo()
			return nil, &os.PathError{Op: "make directory", Path: at, Err: err}
		}
		next, err := openChild(m.dir, part)
		if err != nil {
			m.undo()
			return nil, &os.PathError{Op: "open", Path: at, Err: err}
		}
		m.dir.Close()
		m.dir = next
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(m.dir.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		m.undo()
		return nil, fmt.Errorf("%s is no directory: %w", path, gcsserver.ErrExists)
	}
	return m, nil
}

// undo closes the directory and removes the directories that were created, as far as they are empty.
func (m *madePath) undo() {
	m.close()
	for i := len(m.made) - 1; i >= 0; i-- {
		if unix.Rmdir(m.made[i]) != nil {
			return
		}
	}
}

func (m *madePath) close() { m.dir.Close() }

// fdPath returns a path that refers to an open file, even if it is renamed or removed.
func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// atParent opens the parent directory of path without following links, and calls f with a path through its descriptor.
// It holds ForkLock: until it executes its program, a forked process would have a copy of the descriptor and keep the
// mount busy, which is often unmounted next.
func atParent(path string, f func(string) error) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	dir, err := openPath(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return f(fdPath(dir) + "/" + filepath.Base(path))
}
