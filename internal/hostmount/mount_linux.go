package hostmount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/userns"
)

// MountImage mounts an image at an existing directory.
func MountImage(ctx context.Context, im Image, target string) error {
	if err := mountImage(ctx, &im, target); err != nil {
		return fail("mount "+im.Path+" at", target, explain(err, im.Filesystem))
	}
	return nil
}

func mountImage(ctx context.Context, im *Image, target string) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	f, err := os.Open(im.Path)
	if err != nil {
		return err
	}
	defer f.Close() // it was only read
	if im.Filesystem == "" {
		if im.Filesystem, err = Detect(f, im.Offset); err != nil {
			return err
		}
	}
	if err := CheckSuperblock(im.Filesystem, f, im.Offset, im.ReadOnly); err != nil {
		return err
	}
	if im.Filesystem == "erofs" && im.Offset == 0 && im.ReadOnly {
		err := mountNew(im.Filesystem, im.Path, im.Options, true, target)
		if !errors.Is(err, unix.ENOTBLK) && !errors.Is(err, unix.ENOSYS) {
			return err
		}
	}
	loop, err := attachLoop(ctx, im)
	if err != nil {
		return err
	}
	// The mount keeps the loop device; without a mount it goes away with this descriptor.
	defer loop.Close()
	options := append(MountOptions(im.Filesystem, im.ReadOnly), im.Options...)
	err = mountNew(im.Filesystem, loop.Name(), options, im.ReadOnly, target)
	if errors.Is(err, unix.ENOSYS) {
		err = mountOld(im.Filesystem, loop.Name(), strings.Join(options, ","), im.ReadOnly, target)
	}
	return err
}

// mountNew mounts by fsopen(2). Errors include the kernel's messages.
func mountNew(fstype, source string, options []string, readOnly bool, target string) error {
	return mountContext(fstype, readOnly, target, func(fd int) error {
		if err := unix.FsconfigSetString(fd, "source", source); err != nil {
			return fmt.Errorf("source %s: %w", source, err)
		}
		for _, o := range options {
			var err error
			if name, value, ok := strings.Cut(o, "="); ok {
				err = unix.FsconfigSetString(fd, name, value)
			} else {
				err = unix.FsconfigSetFlag(fd, o)
			}
			if err != nil {
				return fmt.Errorf("option %s: %w", o, err)
			}
		}
		return nil
	})
}

func mountContext(fstype string, readOnly bool, target string, configure func(fd int) error) error {
	fd, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open file system context for %s: %w", fstype, err)
	}
	defer unix.Close(fd)
	say := func(err error) error {
		if text := kernelLog(fd); text != "" {
			return fmt.Errorf("%w (the kernel says: %s)", err, text)
		}
		return err
	}
	if err := configure(fd); err != nil {
		return say(err)
	}
	attrs := unix.MOUNT_ATTR_NODEV
	if readOnly {
		attrs |= unix.MOUNT_ATTR_RDONLY
		if err := unix.FsconfigSetFlag(fd, "ro"); err != nil {
			return say(err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return say(fmt.Errorf("%s: %w", fstype, err))
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return say(fmt.Errorf("%s: %w", fstype, err))
	}
	defer unix.Close(m)
	return unix.MoveMount(m, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// kernelLog reads the kernel's messages from a file system context.
func kernelLog(fd int) string {
	var lines []string
	b := make([]byte, 1024)
	for range 16 {
		n, err := unix.Read(fd, b)
		if n <= 0 || err != nil {
			break
		}
		lines = append(lines, strings.TrimSpace(strings.TrimLeft(string(b[:n]), "ewi ")))
	}
	return strings.Join(lines, "; ")
}

func mountOld(fstype, source, options string, readOnly bool, target string) error {
	flags := uintptr(unix.MS_NODEV)
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	return unix.Mount(source, target, fstype, flags, options)
}

// MountDirectory bind-mounts a directory at another, existing one.
func MountDirectory(ctx context.Context, source, target string, readOnly bool) error {
	if err := mountDirectory(ctx, source, target, readOnly); err != nil {
		return fail("mount the folder "+source+" at", target, explain(err, ""))
	}
	return nil
}

func mountDirectory(ctx context.Context, source, target string, readOnly bool) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	st, err := os.Stat(source)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return unix.ENOTDIR
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return err
	}
	return unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// CanDisks reports whether root can mount disk images here; in a user namespace the kernel does not allow that.
func CanDisks() bool { return !userns.Inside() }

// CheckOverlay returns an error if this process may not mount overlays. It mounts nothing.
func CheckOverlay() error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err == nil {
		if userns.Inside() {
			if err = unix.FsconfigSetFlag(fd, "userxattr"); err != nil {
				err = fmt.Errorf("option userxattr, which Linux has from 5.11 on: %w", err)
			}
		}
		err = errors.Join(err, unix.Close(fd))
	}
	if err != nil {
		return fmt.Errorf("mount overlays: %w", explain(err, "overlay"))
	}
	return nil
}

// CanEROFS reports whether the kernel supports EROFS and root can mount it here.
func CanEROFS() bool {
	if !CanDisks() {
		return false
	}
	fd, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC) // loads the module where there is one
	if err == nil {
		unix.Close(fd)
		return true
	}
	b, err := os.ReadFile("/proc/filesystems")
	return err == nil && strings.Contains(string(b), "\terofs\n")
}

// explain adds a remedy to errors for which there is one.
func explain(err error, fstype string) error {
	switch {
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		hint := "mounting needs root, or a user namespace with mounts of its own (unshare --map-auto -Urm)"
		if userns.Inside() && (fstype == "ext4" || fstype == "erofs") {
			hint = fmt.Sprintf("the kernel mounts %s for no one in a user namespace: use a folder as scratch and layers in "+
				"the format dir, run as root, or use a virtual machine", fstype)
		}
		return fmt.Errorf("%w: %w: %s", fs.ErrPermission, err, hint)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: this kernel has no %s: load its module (modprobe %[2]s), or use the other layer format", err,
			fstype)
	}
	return err
}
