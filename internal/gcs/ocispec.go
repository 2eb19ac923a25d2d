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

// documents are the document of the container that a process is in, should it be its first, and the process.
func (c *Client) documents(spec *vmm.ProcessSpec) (*specs.Spec, *specs.Process, error) {
	if !c.ours() {
		return ContainerSpec(*spec)
	}
	return Document(spec), ociProcess(spec), nil
}

// Document is the document of the container that a process is in, should it be its first: the caller's, with the root
// that the machine has and the process of the specification, whose rights and limits are those of the document; else
// one of few words, to which our agent adds the defaults.
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

// ContainerSpec is the document of a container for one process in a root, and that process, for Microsoft's guest.
// It runs a container's first process as the numbers say, and ignores a name: a user by name is an error that matches
// ErrNamedUser, with the process all the same, for which the guest does look up the name when it is not the first.
func ContainerSpec(spec vmm.ProcessSpec) (*specs.Spec, *specs.Process, error) {
	process := ociProcess(&spec)
	if spec.Spec != nil {
		return wholeContainer(spec, process)
	}
	process.Capabilities = &specs.LinuxCapabilities{Bounding: capabilities, Effective: capabilities,
		Permitted: capabilities}
	first := *process
	first.User.Username = "" // the guest would give it to processes that name no user
	doc := containerSpec(spec.Root, cmp.Or(spec.Hostname, spec.ContainerID), &first)
	return finishContainer(doc, process, spec.User)
}

// wholeContainer is ContainerSpec by a document of the caller's, whose rights and limits all processes have.
func wholeContainer(spec vmm.ProcessSpec, process *specs.Process) (*specs.Spec, *specs.Process, error) {
	doc := Document(&spec)
	doc.Process.User.Username = ""
	like := *doc.Process
	like.Args, like.Env, like.Cwd = process.Args, process.Env, process.Cwd
	like.Terminal, like.ConsoleSize, like.User.Username = process.Terminal, process.ConsoleSize, process.User.Username
	return finishContainer(doc, &like, spec.User)
}

// finishContainer adds what Microsoft's guest wants to know.
func finishContainer(doc *specs.Spec, process *specs.Process, user string) (*specs.Spec, *specs.Process, error) {
	// Containers that name no network namespace share one, which takes the first of them only. The guest may keep a
	// namespace longer than its container, so each gets a new one.
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

// capabilities are those of root in a container, as our agent has them: the customary ones except the making of
// device nodes, by which the layers of others could be read.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP",
	"CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// numericUser reads "", which is root, "uid" or "uid:gid".
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

// containerSpec is the document of a container with namespaces of its own and the usual mounts.
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
