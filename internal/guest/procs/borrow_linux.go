package procs

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/userns"
)

// borrowed are mounts for a container in a user namespace that are to be had only while this system's own
// are in sight: copies of its devices and of /sys, which nobody makes there, and a new /proc. It is nil
// outside of a user namespace.
type borrowed map[string]int

// borrow takes them before the root is left. What is not to be had is not missed before it is needed.
func borrow() borrowed {
	if !userns.Inside() {
		return nil
	}
	b := borrowed{}
	if fd, err := newProc(); err == nil {
		b["/proc"] = fd
	}
	for _, n := range containerNodes {
		if fd, err := unix.OpenTree(unix.AT_FDCWD, n.path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err == nil {
			b[n.path] = fd
		}
	}
	// With all that is mounted there: the kernel shows nobody what lies below.
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/sys", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return b
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
	if unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr) == nil {
		b["/sys"] = fd
	} else {
		unix.Close(fd)
	}
	return b
}

// newProc creates a /proc of this process's namespace that is mounted nowhere yet.
func newProc() (int, error) {
	fd, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.FsconfigCreate(fd); err != nil {
		return 0, err
	}
	return unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
}

// instead puts what was borrowed at path where the kernel refused to make it anew with err.
func (b borrowed) instead(path string, err error) error {
	fd, ok := b[path]
	if !ok || !errors.Is(err, unix.EPERM) {
		return err
	}
	return unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func (b borrowed) close() {
	for _, fd := range b {
		unix.Close(fd)
	}
}

// mount creates one of the containerMounts.
func (b borrowed) mount(m SystemMount) error {
	err := unix.Mount(m.Type, m.Target, m.Type, m.Flags, m.Data)
	if data, ok := strings.CutSuffix(m.Data, ",gid=5"); ok && errors.Is(err, unix.EINVAL) {
		// A user namespace may have no group of terminals.
		err = unix.Mount(m.Type, m.Target, m.Type, m.Flags, data)
	}
	err = b.instead(m.Target, err)
	if m.Type == "proc" && errors.Is(err, unix.EPERM) && b != nil {
		return fmt.Errorf("%w: parts of this system's own /proc are covered, as in containers, and the kernel then gives a user namespace no other: run strata outside of that container, or start it with a whole /proc (podman run --security-opt unmask=ALL, docker run --security-opt systempaths=unconfined)", err)
	}
	return err
}

// node creates one of the containerNodes.
func (b borrowed) node(path string, dev uint64) error {
	err := unix.Mknod(path, unix.S_IFCHR|0o666, int(dev))
	if _, ok := b[path]; !ok || !errors.Is(err, unix.EPERM) {
		return err
	}
	if err := os.WriteFile(path, nil, 0o666); err != nil { // to mount on
		return err
	}
	return b.instead(path, err)
}
