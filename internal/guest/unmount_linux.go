package guest

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
)

// maxStacked bounds how many mounts on top of each other are taken off one path.
const maxStacked = 64

// unmount takes everything off path that is mounted there, and then removes the directory if it is
// empty. It is never lazy. A path that does not exist or is no mount is done already. In use, the error
// matches errBusy and names who uses it.
func unmount(path string) error {
	err := atParent(path, func(at string) error {
		for range maxStacked {
			switch err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW); {
			case err == nil:
			case errors.Is(err, unix.EINTR):
			case errors.Is(err, unix.EINVAL): // no mount, or no mount any more
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
		return busyError(path)
	}
	return fmt.Errorf("unmount %s: %w", path, err)
}

// removeEmpty removes a directory with nothing in it. One with something in it stays: it is not ours.
func removeEmpty(path string) error {
	err := unix.Rmdir(path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) ||
		errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EROFS) {
		return nil
	}
	return err
}

func busyError(path string) error {
	who := holders(path)
	if len(who) == 0 {
		who = []string{"nobody that can be named; a file of it may be held by the kernel (loop device, swap)"}
	}
	return fmt.Errorf("%s is %w: %s", path, errBusy, strings.Join(who, ", "))
}

// maxHolders is how many holders an error names.
const maxHolders = 8

// holders names the processes that use the file system mounted at path, and the mounts below it.
func holders(path string) []string {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return nil
	}
	var who []string
	for _, m := range mountsBelow("/proc/self/mountinfo", path) {
		who = append(who, "mount "+strconv.Quote(m))
	}
	return append(who, users(uint64(st.Dev), os.Getpid())...)
}

// users names the processes, other than except, that use a file of the file system with a device number.
func users(dev uint64, except int) []string {
	var who []string
	pids, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range pids {
		if len(who) >= maxHolders {
			return append(who, "and others")
		}
		if filepath.Base(proc) == strconv.Itoa(except) {
			continue
		}
		if line, _ := os.ReadFile(proc + "/cmdline"); strings.HasPrefix(string(line), stageName+"\x00") {
			continue // goes by itself when the others have gone
		}
		if how := usedBy(proc, dev); how != "" {
			comm, _ := os.ReadFile(proc + "/comm")
			who = append(who, fmt.Sprintf("process %s (%s) by %s", filepath.Base(proc),
				printableName(strings.TrimSpace(string(comm))), how))
		}
	}
	return who
}

func printableName(s string) string {
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}

// usedBy says how a process uses a file system, or "".
func usedBy(proc string, dev uint64) string {
	on := func(path string) bool {
		var st unix.Stat_t
		return unix.Stat(path, &st) == nil && uint64(st.Dev) == dev
	}
	for _, link := range []string{"root", "cwd", "exe"} {
		if on(proc + "/" + link) {
			target, _ := os.Readlink(proc + "/" + link)
			return strings.TrimSpace(map[string]string{"root": "root directory", "cwd": "working directory",
				"exe": "program"}[link] + " " + target)
		}
	}
	fds, _ := os.ReadDir(proc + "/fd")
	for _, fd := range fds {
		if on(proc + "/fd/" + fd.Name()) {
			target, _ := os.Readlink(proc + "/fd/" + fd.Name())
			return "open file " + target
		}
	}
	return mapped(proc, dev)
}

// mapped says which file of the file system a process has in its memory, or "".
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
	_ = eachMount(info, func(m mountLine) {
		if strings.HasPrefix(m.point, path+"/") {
			out = append(out, m.point)
		}
	})
	slices.Sort(out)
	return out
}

// mountLine is what is of interest in a line of mountinfo.
type mountLine struct {
	dev    uint64
	point  string
	fstype string
}

var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func eachMount(info string, f func(mountLine)) error {
	file, err := os.Open(info)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 7 {
			continue
		}
		major, minor, _ := strings.Cut(fields[2], ":")
		a, err1 := strconv.ParseUint(major, 10, 32)
		b, err2 := strconv.ParseUint(minor, 10, 32)
		if err1 != nil || err2 != nil {
			continue
		}
		m := mountLine{dev: unix.Mkdev(uint32(a), uint32(b)), point: unescapeMount.Replace(fields[4])}
		if i := slices.Index(fields, "-"); i > 0 && i+1 < len(fields) {
			m.fstype = fields[i+1]
		}
		f(m)
	}
	return lines.Err()
}

// otherNamespaces names processes in mount namespaces of their own that still have the file system
// with a device number mounted. Unmounting it here would not free its device.
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
		_ = eachMount(proc+"/mountinfo", func(m mountLine) {
			if m.dev == dev {
				held = m.point
			}
		})
		if held != "" && len(who) < maxHolders {
			comm, _ := os.ReadFile(proc + "/comm")
			who = append(who, fmt.Sprintf("process %s (%s) in its own mount namespace at %s", filepath.Base(proc),
				printableName(strings.TrimSpace(string(comm))), strconv.Quote(held)))
		}
	}
	return who
}

// mountedDevice is the device number of what is mounted at path, or false.
func mountedDevice(path string) (uint64, bool) {
	var dev uint64
	found := false
	_ = eachMount("/proc/self/mountinfo", func(m mountLine) {
		if m.point == path {
			dev, found = m.dev, true
		}
	})
	return dev, found
}
