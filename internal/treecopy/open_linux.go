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

// Flags of what is opened: what has become a pipe meanwhile is not waited for.
const (
	nonBlock   = unix.O_NONBLOCK
	onlyFolder = unix.O_DIRECTORY | unix.O_NONBLOCK
)

// openDir opens a folder of a container: links on the way, and at its end, lead where they lead inside the root.
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

// Stat tells what is at a path of a container. Its last part is not followed where it is a link, unless follow says so.
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

// split is a path of a container as its folder and its last part, which is "." for the root.
func split(name string) (dir, base string) {
	c := path.Clean("/" + name)
	if c == "/" {
		return "/", "."
	}
	return path.Dir(c), path.Base(c)
}

// PackFrom is Pack for a path of a container; one that ends in "/." is a folder that a link may lead to.
func PackFrom(w io.Writer, root, name, as string) error {
	dir, base := split(name)
	if as == "." || strings.HasSuffix(name, "/.") { // what is in it, also where it is a link
		dir, base = name, "."
	}
	d, err := openDir(root, dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return Pack(w, d, base, as)
}

// UnpackInto is Unpack for a folder of a container.
func UnpackInto(r io.Reader, root, dir string, owners Owners, skip func(name, why string)) error {
	d, err := openDir(root, dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return Unpack(r, d, ".", owners, skip)
}

// Fill copies what a folder of a container's root has into an empty folder to, with owners and modes. A path that the
// root does not have as a folder is no error: nothing is copied.
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
