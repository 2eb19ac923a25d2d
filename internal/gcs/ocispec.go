package gcs

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/uuid"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/vmm"
)

// ociProcess converts a spec to an OCI process. A user by name is in Username, which only our agent reads.
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

// documents returns the OCI spec of a process's container, for the case that it is the first one, and the OCI process.
func (c *Client) documents(spec *vmm.ProcessSpec) (*specs.Spec, *specs.Process, error) {
	if !c.ours() {
		return ContainerSpec(*spec)
	}
	return Document(spec), ociProcess(spec), nil
}

// Document returns the OCI spec of a process's container, for the case that it is the first one: the caller's, with the
// container's root, and the process with the capabilities and limits of the caller's spec; or, if the caller has none,
// a partial spec, to which our agent adds its defaults.
func Document(spec *vmm.ProcessSpec) *specs.Spec {
	process := ociProcess(spec)
	if spec.Spec == nil {
		return containerSpec(spec.Root, cmp.Or(spec.Hostname, spec.ContainerID), process)
	}
	doc := *spec.Spec
	doc.Root = &specs.Root{Path: spec.Root, Readonly: doc.Root != nil && doc.Root.Readonly}
	doc.Hostname = cmp.Or(spec.Hostname, doc.Hostname, spec.ContainerID)
	first := specs.Process{}
	if doc.Process != nil {
		first = *doc.Process
	}
	first.Args, first.Env, first.Cwd = process.Args, process.Env, process.Cwd
	first.Terminal, first.ConsoleSize = process.Terminal, process.ConsoleSize
	first.User.UID, first.User.GID, first.User.Username = 0, 0, process.User.Username
	doc.Process = &first
	return &doc
}

// ContainerSpec returns the OCI spec of a container for one process, and that process, for Microsoft's guest. For a
// container's first process that guest ignores a user's name. So a user by name is an error that matches ErrNamedUser;
// the process is returned nevertheless, because for later processes the guest does look up the name.
func ContainerSpec(spec vmm.ProcessSpec) (*specs.Spec, *specs.Process, error) {
	process := ociProcess(&spec)
	if spec.Spec != nil {
		return wholeContainer(spec, process)
	}
	process.Capabilities = &specs.LinuxCapabilities{Bounding: capabilities, Effective: capabilities,
		Permitted: capabilities}
	first := *process
	first.User.Username = "" // the guest would use it for processes without a user
	doc := containerSpec(spec.Root, cmp.Or(spec.Hostname, spec.ContainerID), &first)
	return finishContainer(doc, process, spec.User)
}

// wholeContainer is ContainerSpec for a spec of the caller's, whose capabilities and limits apply to all processes.
func wholeContainer(spec vmm.ProcessSpec, process *specs.Process) (*specs.Spec, *specs.Process, error) {
	doc := Document(&spec)
	doc.Process.User.Username = ""
	like := *doc.Process
	like.Args, like.Env, like.Cwd = process.Args, process.Env, process.Cwd
	like.Terminal, like.ConsoleSize, like.User.Username = process.Terminal, process.ConsoleSize, process.User.Username
	return finishContainer(doc, &like, spec.User)
}

// finishContainer adds what Microsoft's guest requires.
func finishContainer(doc *specs.Spec, process *specs.Process, user string) (*specs.Spec, *specs.Process, error) {
	// Containers without a network namespace share one, which only the first of them can use. Each gets a new one,
	// because the guest may keep a namespace longer than its container.
	doc.Windows = &specs.Windows{Network: &specs.WindowsNetwork{NetworkNamespace: uuid.NewString()}}
	uid, gid, ok := numericUser(user)
	if !ok {
		return doc, process, fmt.Errorf("%w: user %q of a container's first process: give uid:gid",
			ErrNamedUser, user)
	}
	for _, p := range []*specs.Process{process, doc.Process} {
		p.User.UID, p.User.GID = uid, gid
	}
	return doc, process, nil
}

// ErrNamedUser is matched by the error of ContainerSpec about a user by name.
var ErrNamedUser = fmt.Errorf("a user by name: %w", ErrUnsupported)

// capabilities are those of root in a container, the same as in our agent: Docker's defaults without CAP_MKNOD, by
// which a container could read the layers of others.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP",
	"CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// numericUser parses "", which is root, "uid" or "uid:gid".
func numericUser(user string) (uid, gid uint32, ok bool) {
	if user == "" {
		return 0, 0, true
	}
	u, g, both := strings.Cut(user, ":")
	id, err := strconv.ParseUint(u, 10, 31)
	if err != nil || !both {
		return uint32(id), 0, err == nil
	}
	group, err := strconv.ParseUint(g, 10, 31)
	return uint32(id), uint32(group), err == nil
}

// containerSpec returns the OCI spec of a container with its own namespaces and the usual mounts.
func containerSpec(root, hostname string, process *specs.Process) *specs.Spec {
	return &specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: root}, Hostname: hostname, Process: process,
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755",
				"size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance",
				"ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777",
				"size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev",
				"relatime", "ro"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.UTSNamespace}, {Type: specs.IPCNamespace},
		}},
	}
}
