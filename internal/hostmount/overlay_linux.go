package hostmount

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/userns"
)

// MountOverlay mounts a stack of directories at an existing directory.
func MountOverlay(ctx context.Context, o Overlay, target string) error {
	if err := mountOverlay(ctx, o, target); err != nil {
		return fail(fmt.Sprintf("mount an overlay of %d layers at", len(o.Lowers)), target, explain(err, "overlay"))
	}
	return nil
}

func mountOverlay(ctx context.Context, o Overlay, target string) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	switch {
	case len(o.Lowers) == 0:
		return errors.New("an overlay needs at least one layer")
	case len(o.Lowers) > MaxLayers:
		return fmt.Errorf("the most that can be combined are %d", MaxLayers)
	case (o.Upper == "") != (o.Work == ""):
		return errors.New("an overlay needs both an upper and a work directory, or neither")
	case len(o.Lowers) == 1 && o.Upper == "":
		return mountDirectory(ctx, o.Lowers[0], target, true) // a read-only overlay needs two layers
	}
	fds := make([]int, 0, len(o.Lowers)+3)
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	open := func(path string) (int, error) {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("%s: %w", path, err)
		}
		fds = append(fds, fd)
		return fd, nil
	}
	lowers := make([]string, len(o.Lowers))
	for i, l := range o.Lowers {
		fd, err := open(l)
		if err != nil {
			return err
		}
		lowers[i] = strconv.Itoa(fd)
	}
	options := "lowerdir=" + strings.Join(lowers, ":")
	flags := uintptr(unix.MS_NODEV)
	if o.Upper == "" {
		flags |= unix.MS_RDONLY
	} else {
		for _, dir := range []struct{ option, path string }{{"upperdir", o.Upper}, {"workdir", o.Work}} {
			fd, err := open(dir.path)
			if err != nil {
				return err
			}
			options += fmt.Sprintf(",%s=%d", dir.option, fd)
		}
	}
	if userns.Inside() {
		// In a user namespace, trusted.* extended attributes cannot be used: use user.* instead.
		options += ",userxattr"
	}
	at, err := open(target)
	if err != nil {
		return err
	}
	return OverlayFDs(at, flags, options)
}

// OverlayFDs mounts an overlay at an open directory. options name directories by their file descriptor numbers: so all
// MaxLayers fit in one page, the limit of mount options, and paths need no escaping. The per-layer options of Linux 6.8
// are not needed.
func OverlayFDs(target int, flags uintptr, options string) error {
	result := make(chan error, 1)
	go func() {
		// The working directory is shared by the process: this thread gets its own, and ends with the goroutine because
		// it is never unlocked.
		runtime.LockOSThread()
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			if err := unix.Chdir("/proc/self/fd"); err != nil {
				return err
			}
			err := unix.Mount("overlay", strconv.Itoa(target), "overlay", flags, options)
			if errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("%w (the kernel's log says why)", err)
			}
			return err
		}()
	}()
	return <-result
}
