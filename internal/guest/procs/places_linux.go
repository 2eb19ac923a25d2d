package procs

import (
	"errors"
	"fmt"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/ocispec"
)

// leadsTo resolves the symbolic links of a path in a root in which nothing is mounted yet. Missing components are kept
// as they are.
func (r rootDir) leadsTo(path string) (string, error) { return ocispec.Follow(path, r.Link) }

// Link returns the target of a symbolic link, or "" if path is not one.
func (r rootDir) Link(path string) (string, error) {
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

// linkIn is Link for a path at or below the destination of a bind mount, looked up in the mount's source.
func linkIn(m specs.Mount, path string) (string, error) {
	if !ocispec.IsBind(m) {
		return "", nil
	}
	source, err := openRoot(m.Source)
	if err != nil { // a file, or it is not there: the runtime says so
		return "", nil
	}
	defer source.close()
	return source.Link("/" + strings.TrimPrefix(path, m.Destination))
}

// Folder reports whether there is a directory at a path.
func (r rootDir) Folder(path string) (bool, error) {
	f, err := r.open(path, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return false, err
	}
	defer f.Close()
	fi, err := f.Stat()
	return err == nil && fi.IsDir(), err
}

// checkPlaces is ocispec.CheckPlaces for this root.
func (r rootDir) checkPlaces(mounts []specs.Mount) error {
	err := ocispec.CheckPlaces(mounts, r, linkIn)
	if errors.Is(err, ocispec.ErrPlace) {
		err = fmt.Errorf("%w: %w", err, gcsserver.ErrInvalid)
	}
	return err
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
