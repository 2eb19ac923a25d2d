package procs

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/crun"
	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/ocispec"
	"github.com/stratavm/strata/internal/userns"
)

// whole reports whether a spec describes a container in full. A spec without capabilities is partial: it names the root
// and little else, and defaults apply.
func whole(doc *specs.Spec) bool { return doc.Process != nil && doc.Process.Capabilities != nil }

// document returns the spec by which the runtime creates an instance of the container, and the contents of its files in
// /etc, or nil if it gets none.
func (c *container) document(r *crun.Runtime, cgroup string) (*specs.Spec, *ocispec.Etc, error) {
	var spec *specs.Spec
	etc := new(ocispec.Etc)
	if c.doc != nil {
		given := *c.doc
		spec = &given
		if spec.Hooks != nil {
			return nil, nil, fmt.Errorf("its document has hooks, which are programs outside of the container: %w",
				gcsserver.ErrUnsupported)
		}
		var err error
		if etc, err = ocispec.EtcOf(spec.Annotations); err != nil {
			return nil, nil, fmt.Errorf("its document: %w: %w", gcsserver.ErrInvalid, err)
		}
	} else {
		var err error
		if spec, err = defaultDocument(); err != nil {
			return nil, nil, err
		}
		spec.Mounts = append(spec.Mounts, c.temporary...)
	}
	spec.Version, spec.Hostname, spec.Annotations = ocispec.Version, c.hostname, nil
	readOnly := spec.Root != nil && spec.Root.Readonly
	spec.Root = &specs.Root{Path: c.root, Readonly: readOnly}
	linux := specs.Linux{}
	if spec.Linux != nil {
		linux = *spec.Linux
	}
	spec.Linux = &linux
	linux.Resources = deviceRules(linux.Resources)
	for _, kind := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.MountNamespace} {
		if !slices.ContainsFunc(linux.Namespaces,
			func(n specs.LinuxNamespace) bool { return n.Type == kind && isOwn(n) }) {
			return nil, nil, fmt.Errorf("its document has no %s namespace of its own: %w", kind, gcsserver.ErrInvalid)
		}
	}
	linux.CgroupsPath = cgroup
	if r.NoCgroups {
		if limited(linux.Resources) {
			return nil, nil, fmt.Errorf("limits need cgroups, and this process may create none: run strata as root: %w",
				gcsserver.ErrUnsupported)
		}
		linux.CgroupsPath, linux.Resources = "", nil
	}
	process := *spec.Process
	process.Rlimits = possibleRlimits(process.Rlimits)
	if r.NoCgroups { // without which nothing says what devices may be opened
		process.Capabilities = withoutNodes(process.Capabilities)
	}
	spec.Process = &process
	if userns.Inside() {
		spec.Mounts = nestedMounts(spec.Mounts)
	}
	return spec, etc, nil
}

// defaultDocument returns the spec of a container with a partial spec. It has its own network, and no CAP_MKNOD: by
// device nodes it could read the layers of other containers.
func defaultDocument() (*specs.Spec, error) {
	spec := ocispec.Default()
	caps := slices.DeleteFunc(ocispec.DefaultCapabilities(), func(c string) bool { return c == "CAP_MKNOD" })
	spec.Process.Capabilities = ocispec.Capabilities(caps)
	spec.Process.Rlimits = append(spec.Process.Rlimits,
		specs.POSIXRlimit{Type: "RLIMIT_NPROC", Soft: unix.RLIM_INFINITY, Hard: unix.RLIM_INFINITY})
	if userns.Inside() { // not all groups are mapped
		delete(spec.Linux.Sysctl, "net.ipv4.ping_group_range")
	}
	var err error
	spec.Linux.Seccomp, err = ocispec.DefaultSeccomp(caps)
	return spec, err
}

// withoutNodes returns capabilities without CAP_MKNOD.
func withoutNodes(c *specs.LinuxCapabilities) *specs.LinuxCapabilities {
	if c == nil {
		return nil
	}
	but := func(list []string) []string {
		return slices.DeleteFunc(slices.Clone(list), func(name string) bool { return name == "CAP_MKNOD" })
	}
	return &specs.LinuxCapabilities{Bounding: but(c.Bounding), Effective: but(c.Effective), Permitted: but(c.Permitted),
		Inheritable: but(c.Inheritable), Ambient: but(c.Ambient)}
}

// nestedMounts adapts mounts to a user namespace: /sys is a bind mount, because sysfs can be mounted only by the owner
// of the network namespace; cgroups are left out; and so is gid=5 of devpts if that group is not mapped.
func nestedMounts(mounts []specs.Mount) (out []specs.Mount) {
	ids, err := userns.Current()
	for _, m := range mounts {
		switch m.Type {
		case "sysfs":
			m = specs.Mount{Destination: m.Destination, Type: "bind", Source: "/sys",
				Options: []string{"rbind", "ro", "rro", "nosuid", "noexec", "nodev"}}
		case "cgroup", "cgroup2":
			continue
		case "devpts":
			if err != nil || ids.One {
				m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "gid=5" })
			}
		}
		out = append(out, m)
	}
	return out
}

// deviceRules normalizes device rules for crun, which unlike runc does not take -1 as "any number", and needs "rwm"
// spelled out.
func deviceRules(r *specs.LinuxResources) *specs.LinuxResources {
	if r == nil {
		return nil
	}
	out := *r
	out.Devices = slices.Clone(r.Devices)
	for i := range out.Devices {
		d := &out.Devices[i]
		if d.Major != nil && *d.Major == -1 {
			d.Major = nil
		}
		if d.Minor != nil && *d.Minor == -1 {
			d.Minor = nil
		}
		d.Access = cmp.Or(d.Access, "rwm")
	}
	return &out
}

// limited reports whether resources have a limit other than device rules.
func limited(r *specs.LinuxResources) bool {
	return r != nil && (r.Memory != nil || r.CPU != nil || r.Pids != nil || r.BlockIO != nil || r.Network != nil ||
		len(r.HugepageLimits)+len(r.Rdma)+len(r.Unified) > 0)
}

// rlimits are the rlimits that possibleRlimits lowers if necessary.
var rlimits = map[string]int{"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC}

// possibleRlimits lowers rlimits to what this process may set.
func possibleRlimits(want []specs.POSIXRlimit) (out []specs.POSIXRlimit) {
	for _, l := range want {
		if resource, ok := rlimits[l.Type]; ok {
			l.Hard = min(l.Hard, highest(resource, l.Hard))
			l.Soft = min(l.Soft, l.Hard)
		}
		out = append(out, l)
	}
	return out
}

// highest returns want, or this process's hard limit if it may not raise it to want.
func highest(resource int, want uint64) uint64 {
	var old unix.Rlimit
	if err := unix.Getrlimit(resource, &old); err != nil || old.Max >= want {
		return want
	}
	raised := unix.Rlimit{Cur: old.Cur, Max: want}
	if unix.Setrlimit(resource, &raised) != nil {
		return old.Max
	}
	_ = unix.Setrlimit(resource, &old) // lowering is always possible
	return want
}

// processSpec returns the OCI process of a command, with its user and groups resolved to numeric ids. like is the
// process of the container's spec, from which the remaining fields are taken.
func processSpec(root rootDir, cmd command, like *specs.Process) (*specs.Process, error) {
	if cmd.Args[0] == "" {
		return nil, fmt.Errorf("the program's name is empty: %w", gcsserver.ErrInvalid)
	}
	who, err := lookupUser(root, cmd.User)
	if err != nil {
		return nil, err
	}
	who.addGroups(cmd.Groups)
	who.addGroups(like.User.AdditionalGids)
	p := *like
	p.Args, p.Env, p.Terminal = cmd.Args, slices.Clone(cmd.Env), cmd.Terminal
	p.User = specs.User{UID: who.uid, GID: who.gid, AdditionalGids: who.groups, Umask: like.User.Umask}
	if !maySetGroups() {
		p.User.AdditionalGids = nil
	}
	for name, value := range map[string]string{"PATH": defaultPath, "HOME": who.home} {
		if lookupEnv(p.Env, name) == "" {
			p.Env = append(p.Env, name+"="+value)
		}
	}
	if cmd.Terminal {
		if lookupEnv(p.Env, "TERM") == "" {
			p.Env = append(p.Env, "TERM=xterm")
		}
		if p.ConsoleSize = nil; cmd.Width > 0 && cmd.Height > 0 {
			p.ConsoleSize = &specs.Box{Width: uint(cmd.Width), Height: uint(cmd.Height)}
		}
	}
	if p.Cwd = cmd.Dir; p.Cwd == "" {
		p.Cwd = "/"
	}
	if !filepath.IsAbs(p.Cwd) {
		return nil, fmt.Errorf("working directory %q is not absolute: %w", p.Cwd, gcsserver.ErrInvalid)
	}
	if strings.Contains(p.Args[0], "/") && !filepath.IsAbs(p.Args[0]) && !root.searchable(p.Cwd, who) {
		// crun would look it up by its absolute path, on which the user has no search permission.
		p.Args = append([]string{"/proc/self/cwd/" + p.Args[0]}, p.Args[1:]...)
	}
	return &p, nil
}

// checkDir checks that the working directory exists in a root, or creates it if the command says so. A directory below
// one of mounts cannot be checked yet.
func checkDir(root rootDir, cmd command, mounts []specs.Mount) error {
	dir := filepath.Clean("/" + cmd.Dir)
	if ocispec.Covered(dir, mounts) {
		return nil
	}
	var err error
	if cmd.MakeDir {
		err = root.makeDir(dir)
	} else {
		err = root.isDir(dir)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("working directory %q: no such directory in the root: %w", cmd.Dir, gcsserver.ErrNotFound)
	}
	return fmt.Errorf("working directory %q: %w", cmd.Dir, err)
}
