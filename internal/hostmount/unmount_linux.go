package hostmount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const maxHolders = 5 // named in a message

// Unmount unmounts what is mounted at a directory, but not mounts below it, and keeps the directory. It is no error if
// nothing is mounted. If the mount is in use the error matches ErrBusy and names its users.
func Unmount(ctx context.Context, target string) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		// Either no mount point, or one that cannot be unmounted, or missing privileges, which the kernel checks first.
		// The list of mounts tells.
		if yes, listErr := mountPoint(target); listErr == nil && !yes {
			return nil
		}
	case errors.Is(err, unix.EBUSY):
		return fail("unmount", target, fmt.Errorf("%w%s", ErrBusy, describe(target)))
	}
	return fail("unmount", target, explain(err, ""))
}

// mountPoint reports whether a directory is in the list of mounts, which has resolved paths.
func mountPoint(target string) (bool, error) {
	dir, err := filepath.EvalSymlinks(filepath.Dir(target))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	target = filepath.Join(dir, filepath.Base(target))
	mounts, err := Mounts(target)
	return len(mounts) > 0 && mounts[0] == target, err
}

func describe(target string) string {
	if below, err := Mounts(target); err == nil && len(below) > 1 {
		return " by the mount " + below[1]
	}
	if h := holders(target); len(h) > 0 {
		return " by " + strings.Join(h, ", ") + ": end it, or wait for it"
	}
	return " by the kernel or another mount namespace"
}

// holders describes processes that have a file below dir open or as their working directory.
func holders(dir string) []string {
	return Holders(maxHolders, func(string) bool { return false }, func(link string) bool {
		to, err := os.Readlink(link)
		return err == nil && (to == dir || strings.HasPrefix(to, dir+"/"))
	}, func(string) string { return "" })
}

// Mounts returns the mount points at and below a directory, each one once, in the order in which they
// were mounted; a directory that is a mount point itself comes first.
func Mounts(dir string) ([]string, error) {
	var out []string
	seen := make(map[string]bool)
	err := EachMount("/proc/self/mountinfo", func(m MountLine) {
		switch {
		case seen[m.Point]:
			return
		case m.Point == dir:
			out = append([]string{m.Point}, out...)
		case strings.HasPrefix(m.Point, strings.TrimSuffix(dir, "/")+"/"):
			out = append(out, m.Point)
		default:
			return
		}
		seen[m.Point] = true
	})
	if err != nil {
		return nil, fail("list mounts below", dir, err)
	}
	return out, nil
}
