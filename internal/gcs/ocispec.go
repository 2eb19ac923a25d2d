package gcs

import (
	"cmp"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/vmm"
)

// ociProcess is the process of a spec as the runtime specification writes it. A user by name travels
// in Username, which only our agent reads.
func ociProcess(spec *vmm.ProcessSpec) *specs.Process {
	p := &specs.Process{Terminal: spec.Terminal, Args: spec.Args, Env: spec.Env, Cwd: spec.Dir,
		User: specs.User{Username: spec.User}}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	if spec.Terminal && spec.Width > 0 && spec.Height > 0 {
		p.ConsoleSize = &specs.Box{Width: uint(spec.Width), Height: uint(spec.Height)}
	}
	return p
}

// ContainerSpec is the document of a container for one process in a root, and that process, for those
// who reach the guest by way of the Host Compute Service.
func ContainerSpec(spec vmm.ProcessSpec) (*specs.Spec, *specs.Process) {
	process := ociProcess(&spec)
	return containerSpec(spec.Root, cmp.Or(spec.Hostname, spec.ContainerID), process), process
}

// containerSpec is the document of a container with namespaces of its own and the usual mounts.
func containerSpec(root, hostname string, process *specs.Process) *specs.Spec {
	return &specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: root}, Hostname: hostname, Process: process,
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.UTSNamespace}, {Type: specs.IPCNamespace},
		}},
	}
}
