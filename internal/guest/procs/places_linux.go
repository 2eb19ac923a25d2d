package procs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/ocispec"
)

// maxLinks is the kernel's limit of symbolic links in a path.
const maxLinks = 40

// leadsTo resolves the symbolic links of a path in a root in which nothing is mounted yet. Missing components are kept
// as they are.
func (r rootDir) leadsTo(path string) (string, error) { return follow(path, r.link) }

// follow is leadsTo with the links that link returns.
func follow(path string, link func(at string) (string, error)) (string, error) {
	at, rest := "/", path
	for links := 0; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		at = filepath.Join(at, name)
		to, err := link(at)
		switch {
		case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || err == nil && to == "":
			continue
		case err != nil:
			return "", err
		}
		if links++; links > maxLinks {
			return "", &os.PathError{Op: "follow the links of", Path: path, Err: unix.ELOOP}
		}
		if at = filepath.Dir(at); filepath.IsAbs(to) {
			at = "/"
		}
		rest = to + "/" + rest
	}
	return at, nil
}

// link returns the target of a symbolic link, or "" if path is not one.
func (r rootDir) link(path string) (string, error) {
	f, err := r.open(path, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return "", err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || fi.Mode()&os.ModeSymlink == 0 {
		return "", err
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	return string(buf[:max(n, 0)]), err
}

// systemPlace reports whether a resolved path is in /proc, /sys or /dev.
func systemPlace(path string) bool {
	top, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return top == "proc" || top == "sys" || top == "dev"
}

// linkIn is link for a path at or below the destination of a bind mount, looked up in the mount's source.
func linkIn(m specs.Mount, path string) (string, error) {
	if !ocispec.IsBind(m) {
		return "", nil
	}
	source, err := openRoot(m.Source)
	if err != nil { // a file, or it is not there: the runtime says so
		return "", nil
	}
	defer source.close()
	return source.link("/" + strings.TrimPrefix(path, m.Destination))
}

// checkPlaces returns an error for a mount whose destination leads, by symbolic links of the image or a volume, to the
// root or into a kernel file system: it would hide these, and the masks in them. Destinations without links were
// checked before. A directory can be mounted only over a directory, anything else only over something else.
func (r rootDir) checkPlaces(mounts []specs.Mount) error {
	var before []specs.Mount // with resolved destinations
	for _, m := range mounts {
		images := true // the destination is in the image, not in an earlier mount
		place, err := follow(m.Destination, func(at string) (string, error) {
			for _, over := range slices.Backward(before) {
				if covered(at, []specs.Mount{over}) {
					images = false
					if slices.Contains(over.Options, "tmpcopyup") { // it is filled from the image
						return r.link(at)
					}
					return linkIn(over, at)
				}
			}
			return r.link(at)
		})
		if err == nil && images {
			err = r.sameKind(m, place)
		}
		if err != nil {
			return fmt.Errorf("mount at %q: %w", m.Destination, err)
		}
		placed := m
		placed.Destination = place
		before = append(before, placed)
		if place == filepath.Clean("/"+m.Destination) {
			continue
		}
		if place == "/" || place == "/dev" || systemPlace(place) && !strings.HasPrefix(place, "/dev/") {
			return fmt.Errorf("mount at %q: links of the image or a volume lead to %q, where nothing can be mounted: %w",
				m.Destination, place, gcsserver.ErrInvalid)
		}
	}
	return nil
}

// sameKind returns an error for a directory mounted over a file of the image, or the reverse. Missing paths are left to
// the runtime.
func (r rootDir) sameKind(m specs.Mount, place string) error {
	folder := true
	if ocispec.IsBind(m) {
		fi, err := os.Stat(m.Source)
		if err != nil {
			return nil
		}
		folder = fi.IsDir()
	}
	f, err := r.open(place, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return nil
	}
	defer f.Close()
	fi, err := f.Stat()
	switch {
	case err != nil:
		return err
	case folder && !fi.IsDir():
		return fmt.Errorf("a folder cannot be mounted over the image's file %q: %w", place, gcsserver.ErrInvalid)
	case !folder && fi.IsDir():
		return fmt.Errorf("a file cannot be mounted over the image's folder %q: %w", place, gcsserver.ErrInvalid)
	}
	return nil
}

// openRegular opens a regular file for reading. Anything else is never opened: it may be a device node that the
// container made, and opening that may have side effects.
func (r rootDir) openRegular(path string) (*os.File, error) {
	f, err := r.open(path, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%s is no regular file: %w", path, gcsserver.ErrInvalid))
	}
	// O_NONBLOCK: do not wait for a lease that the container holds on the file.
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDONLY|unix.O_NONBLOCK, 0)
}
