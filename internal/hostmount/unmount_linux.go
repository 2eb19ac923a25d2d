package hostmount

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const maxHolders = 5 // named in a message

// Unmount takes away what is mounted at a directory, and nothing else: not what lies below, and not
// the directory. Nothing mounted there is a success. When something uses the mount the error matches
// ErrBusy and names it.
func Unmount(ctx context.Context, target string) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		// Not a mount point, one that cannot be unmounted, or a caller without rights, to whom the
		// kernel says no before it looks: only the list can tell.
		if yes, listErr := mountPoint(target); listErr == nil && !yes {
			return nil
		}
	case errors.Is(err, unix.EBUSY):
		return fail("unmount", target, fmt.Errorf("%w%s", ErrBusy, describe(target)))
	}
	return fail("unmount", target, explain(err, ""))
}

// mountPoint looks a directory up in the list of mounts, which has paths without links.
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

// holders names processes that have something below dir open, or are in it.
func holders(dir string) []string {
	var out []string
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	inside := func(link string) bool {
		to, err := os.Readlink(link)
		return err == nil && (to == dir || strings.HasPrefix(to, dir+"/"))
	}
	for _, p := range procs {
		pid := filepath.Base(p)
		comm, _ := os.ReadFile(filepath.Join(p, "comm"))
		name := fmt.Sprintf("process %s (%s)", pid, strings.TrimSpace(string(comm)))
		switch {
		case inside(p + "/root"), inside(p + "/cwd"), inside(p + "/exe"):
			out = append(out, name)
		default:
			fds, _ := os.ReadDir(p + "/fd")
			for _, fd := range fds {
				if inside(p + "/fd/" + fd.Name()) {
					out = append(out, name)
					break
				}
			}
		}
		if len(out) == maxHolders {
			return append(out, "and perhaps others")
		}
	}
	return out
}

// Mounts gives the mount points at and below a directory, each one once, in the order in which they
// were mounted; a directory that is a mount point itself comes first.
func Mounts(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fail("list mounts below", dir, err)
	}
	defer f.Close() // it was only read
	var out []string
	s := bufio.NewScanner(f)
	s.Buffer(make([]byte, 64<<10), 16<<20)
	seen := make(map[string]bool)
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) < 5 {
			continue
		}
		point := unescape(fields[4])
		switch {
		case seen[point]:
		case point == dir:
			out = append([]string{point}, out...)
		case strings.HasPrefix(point, strings.TrimSuffix(dir, "/")+"/"):
			out = append(out, point)
		default:
			continue
		}
		seen[point] = true
	}
	if err := s.Err(); err != nil {
		return nil, fail("list mounts below", dir, err)
	}
	return out, nil
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
