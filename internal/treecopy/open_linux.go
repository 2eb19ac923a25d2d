package treecopy

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Flags for opening files: opening must not block if a file has become a FIFO meanwhile.
const (
	nonBlock   = unix.O_NONBLOCK
	onlyFolder = unix.O_DIRECTORY | unix.O_NONBLOCK
)

// openDir opens a directory of a container. Symbolic links, including the last component, are resolved within the root.
func openDir(root, name string) (*os.Root, error) {
	base, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(base)
	fd, err := unix.Openat2(base, path.Clean("/"+name), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// Stat returns the type of the file at a path of a container. If the last component is a link, it is followed only if
// follow is set.
func Stat(root, name string, follow bool) (string, error) {
	if follow {
		d, err := openDir(root, name)
		if err == nil {
			return Folder, d.Close()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return Absent, nil
		}
		if !errors.Is(err, unix.ENOTDIR) {
			return "", err
		}
		return File, nil
	}
	dir, base := split(name)
	if base == "." {
		return Folder, nil
	}
	d, err := openDir(root, dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return Absent, nil
	}
	if err != nil {
		return "", err
	}
	defer d.Close()
	fi, err := d.Lstat(base)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Absent, nil
	case err != nil:
		return "", err
	case fi.IsDir():
		return Folder, nil
	case fi.Mode()&fs.ModeSymlink != 0:
		return Link, nil
	case fi.Mode().IsRegular():
		return File, nil
	}
	return Other, nil
}

// split splits a path of a container into its directory and its last component, which is "." for the root.
func split(name string) (dir, base string) {
	c := path.Clean("/" + name)
	if c == "/" {
		return "/", "."
	}
	return path.Dir(c), path.Base(c)
}

// PackFrom is Pack for a path of a container. If it ends in "/." and is a link, the link is followed.
func PackFrom(w io.Writer, root, name, as string) error {
	dir, base := split(name)
	if as == "." || strings.HasSuffix(name, "/.") { // the contents of the directory, or of the link's target
		dir, base = name, "."
	}
	d, err := openDir(root, dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return Pack(w, d, base, as)
}

// UnpackInto is Unpack for a directory of a container.
func UnpackInto(r io.Reader, root, dir string, owners Owners, skip func(name, why string)) error {
	d, err := openDir(root, dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return Unpack(r, d, ".", owners, skip)
}

// Fill copies the contents of a directory of a container's root into the empty directory to, with owners and modes. If
// the path does not exist or is no directory, nothing is copied and it is no error.
func Fill(root, name, to string) error {
	from, err := openDir(root, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer from.Close()
	into, err := os.OpenRoot(to)
	if err != nil {
		return err
	}
	defer into.Close()
	return Pipe(func(w io.Writer) error { return Pack(w, from, ".", ".") },
		func(r io.Reader) error { return Unpack(r, into, ".", Archived, func(string, string) {}) })
}
