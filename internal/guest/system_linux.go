package guest

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/guest/procs"
)

// systemMount is a mount of the VM itself.
type systemMount struct {
	target, kind string
	flags        uintptr
	data         string
	optional     bool
}

// guestMounts are those of the VM itself, in this order.
var guestMounts = []systemMount{
	{target: "/proc", kind: "proc", flags: procs.NoSUIDDevExec},
	{target: "/sys", kind: "sysfs", flags: procs.NoSUIDDevExec},
	{target: "/dev", kind: "devtmpfs", flags: unix.MS_NOSUID, data: "mode=755"},
	{target: "/run", kind: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: "mode=755"},
	{target: "/tmp", kind: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: "mode=1777"},
	{target: "/dev/pts", kind: "devpts", flags: unix.MS_NOSUID | unix.MS_NOEXEC,
		data: "newinstance,ptmxmode=0666,mode=0620,gid=5", optional: true},
	{target: "/dev/shm", kind: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: "mode=1777", optional: true},
	{target: "/sys/fs/cgroup", kind: "cgroup2", flags: procs.NoSUIDDevExec, optional: true},
}

// raiseLimits raises the limits of open files and of processes to those that container engines set, or to this
// process's hard limit.
func raiseLimits() {
	for resource, want := range map[int]uint64{unix.RLIMIT_NOFILE: 1 << 20, unix.RLIMIT_NPROC: unix.RLIM_INFINITY} {
		// Not unix.Setrlimit: package syscall restores the original RLIMIT_NOFILE in child processes unless it was set
		// by its own function.
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
