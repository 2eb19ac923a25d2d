package mounts

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/hostmount"
)

// maxStacked bounds how many mounts stacked at a path are unmounted.
const maxStacked = 64

// unmountAll unmounts all mounts stacked at path, and removes the directory if it is empty. A path that does not exist
// or is no mount point is no error. If a mount is in use, the error matches gcsserver.ErrBusy and names its users.
func (t *Table) unmountAll(path string) error {
	err := atParent(path, func(at string) error {
		for range maxStacked {
			switch err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW); {
			case err == nil:
			case errors.Is(err, unix.EINTR):
			case errors.Is(err, unix.EINVAL): // nothing, or nothing more, is mounted
				return removeEmpty(at)
			default:
				return err
			}
		}
		return fmt.Errorf("more than %d mounts are stacked there: %w", maxStacked, unix.EBUSY)
	})
	switch {
	case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return nil
	case errors.Is(err, unix.EBUSY):
		return t.busyError(path)
	}
	return fmt.Errorf("unmount %s: %w", path, err)
}

// removeEmpty removes an empty directory. One that is not empty is kept without an error.
func removeEmpty(path string) error {
	err := unix.Rmdir(path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) ||
		errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EROFS) {
		return nil
	}
	return err
}

func (t *Table) busyError(path string) error {
	who := t.holders(path)
	if len(who) == 0 {
		who = []string{"nobody that can be named; a file of it may be held by the kernel (loop device, swap)"}
	}
	return fmt.Errorf("%s is %w: %s", path, gcsserver.ErrBusy, strings.Join(who, ", "))
}

// maxHolders is how many holders an error names.
const maxHolders = 8

// holders names the processes that use the file system mounted at path, and the mounts below it.
func (t *Table) holders(path string) []string {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return nil
	}
	var who []string
	for _, m := range mountsBelow("/proc/self/mountinfo", path) {
		who = append(who, "mount "+strconv.Quote(m))
	}
	return append(who, t.users(uint64(st.Dev), os.Getpid())...)
}

// users describes the processes, other than PID except, that use the file system with device number dev.
func (t *Table) users(dev uint64, except int) []string {
	return hostmount.Holders(maxHolders, func(proc string) bool {
		if filepath.Base(proc) == strconv.Itoa(except) {
			return true
		}
		line, _ := os.ReadFile(proc + "/cmdline")
		return t.procs.Passing(string(line))
	}, func(path string) bool {
		var st unix.Stat_t
		return unix.Stat(path, &st) == nil && uint64(st.Dev) == dev
	}, func(proc string) string { return mapped(proc, dev) })
}

// mapped describes a file of the file system that a process has mapped, or returns "".
func mapped(proc string, dev uint64) string {
	f, err := os.Open(proc + "/maps")
	if err != nil {
		return ""
	}
	defer f.Close()
	want := fmt.Sprintf("%02x:%02x", unix.Major(dev), unix.Minor(dev))
	lines := bufio.NewScanner(io.LimitReader(f, 8<<20))
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) >= 6 && fields[3] == want {
			return "mapped file " + fields[5]
		}
	}
	return ""
}

// mountsBelow lists the mount points strictly below path in a mountinfo file.
func mountsBelow(info, path string) []string {
	var out []string
	_ = hostmount.EachMount(info, func(m hostmount.MountLine) {
		if strings.HasPrefix(m.Point, path+"/") {
			out = append(out, m.Point)
		}
	})
	slices.Sort(out)
	return out
}

// otherNamespaces describes processes in other mount namespaces that have the file system with device number dev
// mounted. Unmounting it here would not free its device.
func otherNamespaces(dev uint64) []string {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return nil
	}
	seen := map[string]bool{own: true}
	var who []string
	pids, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range pids {
		ns, err := os.Readlink(proc + "/ns/mnt")
		if err != nil || seen[ns] {
			continue
		}
		seen[ns] = true
		held := ""
		_ = hostmount.EachMount(proc+"/mountinfo", func(m hostmount.MountLine) {
			if m.Dev == dev {
				held = m.Point
			}
		})
		if held != "" && len(who) < maxHolders {
			who = append(who, fmt.Sprintf("%s in its own mount namespace at %s", hostmount.ProcessName(proc, false),
				strconv.Quote(held)))
		}
	}
	return who
}

// mountedDevice returns the device number of the mount at path, or false if there is none.
func mountedDevice(path string) (uint64, bool) {
	var dev uint64
	found := false
	_ = hostmount.EachMount("/proc/self/mountinfo", func(m hostmount.MountLine) {
		if m.Point == path {
			dev, found = m.Dev, true
		}
	})
	return dev, found
}
