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

// maxLinks is how many links the kernel follows.
const maxLinks = 40

// leadsTo is where a path leads in a root that nothing is mounted in yet: links are followed, and what is missing is
// taken as it is written.
func (r rootDir) leadsTo(path string) (string, error) { return follow(path, r.link) }

// follow is leadsTo where link says what links there are.
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

// link is what a link says, or "" where there is something else.
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

// systemPlace reports whether a path without links is among those at which the kernel's file systems are mounted.
func systemPlace(path string) bool {
	top, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return top == "proc" || top == "sys" || top == "dev"
}

// linkIn is link in what a mount shows, whose Destination is above or at a path.
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

// checkPlaces refuses mounts that links of the image, or of a volume, lead to where none may be: over the root, or over
// what the kernel shows, which the container, or what is masked in it, would be without. What a document says itself
// was checked before. A folder goes over a folder, anything else over anything else.
func (r rootDir) checkPlaces(mounts []specs.Mount) error {
	var before []specs.Mount // at their places
	for _, m := range mounts {
		images := true // not what an earlier mount shows
		place, err := follow(m.Destination, func(at string) (string, error) {
			for _, over := range slices.Backward(before) {
				if covered(at, []specs.Mount{over}) {
					images = false
					if slices.Contains(over.Options, "tmpcopyup") { // it begins as the image
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

// sameKind refuses a folder over something else of the image, and the reverse. What is not there is left to the
// runtime.
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

// openRegular opens a regular file for reading. Anything else is not opened, not even for a moment: it may be a device
// node that the container made, and to open that may do something.
func (r rootDir) openRegular(path string) (*os.File, error) {
	f, err := r.open(path, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%s is no regular file: %w", path, gcsserver.ErrInvalid))
	}
	// A lease that the container has of the file is not waited for.
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDONLY|unix.O_NONBLOCK, 0)
}
