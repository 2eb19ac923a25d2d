package procs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// SystemMount is a mount that a system has by itself.
type SystemMount struct {
	Target, Type string
	Flags        uintptr
	Data         string
	Optional     bool
}

// NoSUIDDevExec are the flags of mounts with neither programs nor devices.
const NoSUIDDevExec = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// containerMounts are in every container, in this order.
var containerMounts = []SystemMount{
	{"/proc", "proc", NoSUIDDevExec, "", false},
	{"/dev", "tmpfs", unix.MS_NOSUID | unix.MS_STRICTATIME, "mode=755,size=65536k", false},
	{"/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5", false},
	{"/dev/shm", "tmpfs", NoSUIDDevExec, "mode=1777,size=65536k", false},
	{"/dev/mqueue", "mqueue", NoSUIDDevExec, "", true},
	{"/sys", "sysfs", NoSUIDDevExec | unix.MS_RDONLY, "", false},
	{"/sys/fs/cgroup", "cgroup2", NoSUIDDevExec | unix.MS_RDONLY, "", true},
}

var containerNodes = []struct {
	path         string
	major, minor uint32
}{
	{"/dev/null", 1, 3}, {"/dev/zero", 1, 5}, {"/dev/full", 1, 7}, {"/dev/random", 1, 8},
	{"/dev/urandom", 1, 9}, {"/dev/tty", 5, 0},
}

var containerLinks = [][2]string{
	{"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"}, {"/proc/self/fd/1", "/dev/stdout"},
	{"/proc/self/fd/2", "/dev/stderr"}, {"pts/ptmx", "/dev/ptmx"},
}

// What of /proc must not be written, and what must not be seen.
var (
	procReadOnly = []string{"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"}
	procHidden   = []string{"/proc/kcore", "/proc/keys", "/proc/timer_list"}
)

// mountSystem mounts what every container has. The root is that of the container already, so that
// symbolic links in it cannot lead anywhere else.
func mountSystem(b borrowed, temporary []SystemMount) error {
	defer unix.Umask(unix.Umask(0))
	for _, m := range slices.Concat(containerMounts, temporary) {
		if err := os.MkdirAll(m.Target, 0o755); err != nil && !m.Optional {
			return fmt.Errorf("the root has no %s and it cannot be made: %w", m.Target, err)
		}
		if err := b.mount(m); err != nil && !m.Optional {
			return fmt.Errorf("mount %s: %w", m.Target, err)
		}
	}
	for _, n := range containerNodes {
		if err := b.node(n.path, unix.Mkdev(n.major, n.minor)); err != nil {
			return fmt.Errorf("make %s: %w", n.path, err)
		}
	}
	for _, l := range containerLinks {
		if err := os.Symlink(l[0], l[1]); err != nil {
			return err
		}
	}
	for _, p := range procReadOnly {
		if unix.Mount(p, p, "", unix.MS_BIND, "") == nil {
			if err := unix.Mount("", p, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|NoSUIDDevExec, ""); err != nil {
				return fmt.Errorf("make %s read-only: %w", p, err)
			}
		}
	}
	for _, p := range procHidden {
		_ = unix.Mount("/dev/null", p, "", unix.MS_BIND, "") // not every kernel has them
	}
	return nil
}

// kept are the capabilities that root has in a container: the customary ones except the making of
// device nodes, by which the layers of others could be read.
var kept = []uintptr{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FSETID, unix.CAP_FOWNER, unix.CAP_SETGID, unix.CAP_SETUID,
	unix.CAP_SETFCAP, unix.CAP_SETPCAP, unix.CAP_NET_BIND_SERVICE, unix.CAP_NET_RAW, unix.CAP_SYS_CHROOT,
	unix.CAP_KILL, unix.CAP_AUDIT_WRITE,
}

// dropCapabilities takes from the calling thread, and so from all it starts, what is not kept. The
// thread itself keeps its own until it executes a program.
func dropCapabilities() error {
	keep := map[uintptr]bool{}
	for _, c := range kept {
		keep[c] = true
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if keep[c] {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err == unix.EINVAL {
			break // a kernel that knows fewer
		} else if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return nil
}

// maxTemporary bounds the file systems in memory that a container has besides those of every one.
const maxTemporary = 64

// mountFlags are the options of a container document that are flags.
var mountFlags = map[string]uintptr{"nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
	"ro": unix.MS_RDONLY, "noatime": unix.MS_NOATIME, "relatime": unix.MS_RELATIME, "strictatime": unix.MS_STRICTATIME}

// temporaryMounts are the file systems in memory that a document asks for, such as /run, besides those of
// every container; the other kinds that every container has are passed over. Binds are not known.
func temporaryMounts(mounts []specs.Mount) ([]SystemMount, error) {
	var out []SystemMount
	for _, m := range mounts {
		at := filepath.Clean("/" + m.Destination)
		switch {
		case m.Type == "bind" || m.Type == "none" || m.Type == "":
			return nil, fmt.Errorf("mount %q of type %q: %w", m.Destination, m.Type, gcsserver.ErrUnsupported)
		case m.Type != "tmpfs" || slices.ContainsFunc(containerMounts, func(s SystemMount) bool { return s.Target == at }):
			continue
		case at == "/" || strings.HasPrefix(at+"/", "/proc/") || strings.HasPrefix(at+"/", "/sys/") || len(out) == maxTemporary:
			return nil, fmt.Errorf("mount %q of type %q: %w", m.Destination, m.Type, gcsserver.ErrInvalid)
		}
		t := SystemMount{Target: at, Type: "tmpfs"}
		var data []string
		for _, o := range m.Options {
			key, _, _ := strings.Cut(o, "=")
			if flag, ok := mountFlags[o]; ok {
				t.Flags |= flag
			} else if slices.Contains([]string{"size", "mode", "uid", "gid", "nr_inodes"}, key) && !strings.Contains(o, ",") {
				data = append(data, o)
			}
		}
		t.Data = strings.Join(data, ",")
		out = append(out, t)
	}
	return out, nil
}

// RaiseLimits sets what every process in a container may have open, and how many of them there may be, to
// what container engines set, or as far as this process may.
func RaiseLimits() {
	for resource, want := range map[int]uint64{unix.RLIMIT_NOFILE: 1 << 20, unix.RLIMIT_NPROC: unix.RLIM_INFINITY} {
		// The function of package syscall: what is set by it is not put back in children.
		if syscall.Setrlimit(resource, &syscall.Rlimit{Cur: want, Max: want}) == nil {
			continue
		}
		var have syscall.Rlimit
		if syscall.Getrlimit(resource, &have) == nil {
			have.Cur = have.Max
			_ = syscall.Setrlimit(resource, &have)
		}
	}
}
