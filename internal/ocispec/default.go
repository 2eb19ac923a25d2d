package ocispec

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Version is the ociVersion of specs. Debian 12's crun 1.8.1 refuses 1.3.0.
const Version = "1.0.2"

// DefaultPath is the PATH of a program without one.
const DefaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// defaultCapabilities are those of root in a container.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// DefaultCapabilities returns the default capabilities of root in a container.
func DefaultCapabilities() []string { return append([]string(nil), defaultCapabilities...) }

// Default returns the default spec of a container, with docker's namespaces, mounts, masks and device rules, but
// without process arguments, root and seccomp profile (see DefaultSeccomp). Each call returns a new copy.
func Default() *specs.Spec {
	return &specs.Spec{
		Version: Version,
		Process: &specs.Process{Cwd: "/", Capabilities: Capabilities(DefaultCapabilities()), Rlimits: defaultRlimits()},
		Root:    &specs.Root{Path: "rootfs"},
		Mounts:  defaultMounts(),
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.CgroupNamespace},
			},
			Resources: &specs.LinuxResources{Devices: defaultDeviceRules()},
			// Ports below 1024 and ping need no rights: the network is the container's own.
			Sysctl: map[string]string{
				"net.ipv4.ip_unprivileged_port_start": "0",
				"net.ipv4.ping_group_range":           "0 2147483647",
			},
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
				"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
				"/sys/devices/virtual/powercap", "/sys/firmware",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// Capabilities returns the capability sets of a program of root. There are no inheritable and ambient capabilities, so
// that a program of another user has none.
func Capabilities(list []string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{Bounding: list, Effective: list, Permitted: list}
}

// defaultRlimits returns the rlimits that docker sets by default. Whoever starts the container lowers them to what the
// host allows.
func defaultRlimits() []specs.POSIXRlimit {
	return []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1 << 20, Hard: 1 << 20}}
}

func defaultMounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
			Options: []string{"ro", "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
			Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
	}
}

// defaultDeviceRules returns rules that deny all devices except those of every container. The runtime adds terminals.
func defaultDeviceRules() []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for _, d := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 1}} {
		rules = append(rules,
			specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &d[0], Minor: &d[1], Access: "rwm"})
	}
	return append(rules, specs.LinuxDeviceCgroup{Allow: false, Type: "c", Major: ptr(int64(10)), Minor: ptr(int64(229)),
		Access: "rwm"}) // fuse
}

func ptr[T any](v T) *T { return &v }
