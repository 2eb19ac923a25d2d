package hostmount

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

const maxMountData = 4095 // bytes of options that mount(2) takes

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
	case (o.Upper == "") != (o.Work == ""):
		return errors.New("an overlay needs both an upper and a work directory, or neither")
	case len(o.Lowers) == 1 && o.Upper == "":
		return mountDirectory(ctx, o.Lowers[0], target, true) // the kernel wants two layers at least
	}
	fds := make([]int, 0, len(o.Lowers)+2)
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	// Paths with colons, commas or backslashes, and long ones, are all the same through descriptors.
	open := func(path string) (string, error) {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		fds = append(fds, fd)
		return fmt.Sprintf("/proc/self/fd/%d", fd), nil
	}
	lowers := make([]string, len(o.Lowers))
	var err error
	for i, l := range o.Lowers {
		if lowers[i], err = open(l); err != nil {
			return err
		}
	}
	writable := make(map[string]string)
	if o.Upper != "" {
		if writable["upperdir"], err = open(o.Upper); err != nil {
			return err
		}
		if writable["workdir"], err = open(o.Work); err != nil {
			return err
		}
	}
	var flags []string
	if inUserNamespace() {
		flags = append(flags, "userxattr")
	}
	err = mountContext("overlay", o.Upper == "", target, func(fd int) error {
		if err := unix.FsconfigSetString(fd, "source", "overlay"); err != nil {
			return err
		}
		for _, l := range lowers {
			if err := unix.FsconfigSetString(fd, "lowerdir+", l); err != nil {
				return fmt.Errorf("lowerdir+: %w", errNoAppend(err))
			}
		}
		for k, v := range writable {
			if err := unix.FsconfigSetString(fd, k, v); err != nil {
				return fmt.Errorf("%s: %w", k, err)
			}
		}
		for _, f := range flags {
			if err := unix.FsconfigSetFlag(fd, f); err != nil {
				return fmt.Errorf("%s: %w", f, err)
			}
		}
		return nil
	})
	if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, errAppend) {
		return err
	}
	options := append(flags, "lowerdir="+strings.Join(lowers, ":"))
	for k, v := range writable {
		options = append(options, k+"="+v)
	}
	data := strings.Join(options, ",")
	if len(data) > maxMountData {
		return fmt.Errorf("%d layers need %d bytes of options, this kernel takes %d: Linux 6.8 has no such limit", len(lowers), len(data), maxMountData)
	}
	return mountOld("overlay", "overlay", data, o.Upper == "", target)
}

// errAppend says that the kernel does not know "lowerdir+".
var errAppend = errors.New("this kernel takes all layers in one option")

func errNoAppend(err error) error {
	if errors.Is(err, unix.EINVAL) {
		return errAppend
	}
	return err
}
