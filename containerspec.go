package strata

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/internal/ocispec"
)

// SpecOptions say how a container differs from its image's configuration and from the defaults, which are docker's.
// The zero value changes nothing.
type SpecOptions struct {
	// Entrypoint is put before Args. Nil: the image's entrypoint; empty but not nil: none. If it is not nil, the
	// image's arguments are ignored.
	Entrypoint []string
	// Args are the program and its arguments, or the arguments of the entrypoint. Empty: the image's.
	Args []string
	// Env holds KEY=VALUE strings. Later ones override earlier ones and those of the image.
	Env []string
	// WorkDir is an absolute path in the container; empty: the image's, else "/".
	WorkDir string
	// User is "name", "uid", "uid:gid" or "name:group"; empty: the image's, else root. Anything but "uid:gid" with two
	// numbers is stored in Process.User.Username and looked up in the container's root when the program is started.
	User string
	// Init runs catatonit as the container's first process: it reaps orphaned processes and forwards signals to the
	// program, its child. The executable is that of the VM or host.
	Init bool
	// Hostname of the container; empty: chosen by the caller that runs it.
	Hostname string
	// Terminal gives the program a terminal of Width columns and Height rows, if both are not 0.
	Terminal      bool
	Width, Height uint

	// CapAdd and CapDrop change the default capabilities. "ALL" stands for all of them; the prefix "CAP_" is optional.
	CapAdd, CapDrop []string
	// NoNewPrivileges keeps programs from gaining privileges, such as by set-uid files.
	NoNewPrivileges bool
	// Seccomp is a seccomp profile in docker's format; nil: docker's default profile. SeccompUnconfined: no profile.
	// Profiles can only be evaluated on Linux hosts; on others, without SeccompUnconfined, the error matches
	// errors.ErrUnsupported.
	Seccomp           []byte
	SeccompUnconfined bool
	// Privileged grants all capabilities and devices, masks no paths and applies no seccomp profile. Programs in the
	// container are then as powerful as root of the VM or host.
	Privileged bool
	// ReadonlyRoot mounts the root read-only.
	ReadonlyRoot bool

	// Memory and MemorySwap (memory plus swap) are in bytes, CPUs in processors, PidsLimit in processes; 0: no limit.
	// MemorySwap may be -1: unlimited swap.
	Memory, MemorySwap int64
	CPUs               float64
	CPUShares          uint64 // relative to other containers; 0: 1024
	PidsLimit          int64
	Rlimits            []specs.POSIXRlimit // override the default ones
	OOMScoreAdj        *int
	ShmSize            int64 // of /dev/shm, in bytes; 0: 64 MiB

	// Mounts are added to the default ones and replace those with the same destination.
	Mounts []specs.Mount
	// Hosts are additional lines of /etc/hosts. Nameservers, Search and ResolverOptions replace what the machine's
	// /etc/resolv.conf says. Both files and /etc/hostname are generated for the container.
	Hosts                                []SpecHost
	Nameservers, Search, ResolverOptions []string
	// Groups are additional group ids of the program.
	Groups  []uint32
	Devices []SpecDevice
	Sysctls map[string]string
	// HostNetwork uses the network of the VM or host instead of a network namespace of the container's own.
	HostNetwork bool
	// UserNamespace says that the container will run in a user namespace: what is impossible there is left out.
	UserNamespace bool
	// Annotations of the spec; they override the labels of the image.
	Annotations map[string]string
}

// SpecDevice is a device node in a container.
type SpecDevice struct {
	specs.LinuxDevice
	Access string // any of "r", "w" and "m"; empty: all
}

// SpecHost is a line of /etc/hosts.
type SpecHost = ocispec.Host

// ErrSpecRefused is matched by errors about fields of a spec that Strata does not support.
var ErrSpecRefused = ocispec.ErrRefused

// ContainerSpec returns the OCI runtime spec of a container of an image: docker's defaults, then the image's
// configuration, then the options. Spec.Root.Path is left to the caller that mounts the root. The spec passes
// CheckSpec. Labels of the image become annotations, except those with a meaning for a runtime.
func ContainerSpec(c image.Config, o SpecOptions) (*specs.Spec, error) {
	s := ocispec.Default()
	for _, step := range []func(*specs.Spec, image.Config, SpecOptions) error{
		specProcess, specUser, specRights, specResources, specFiles, specNetwork, specSeccomp, specAnnotations,
	} {
		if err := step(s, c, o); err != nil {
			return nil, fmt.Errorf("container: %w", err)
		}
	}
	if err := ocispec.Check(s); err != nil {
		return nil, err
	}
	return s, nil
}

// ParseSpec decodes an OCI runtime spec of at most 4 MiB and checks it as CheckSpec does. Unknown and duplicate fields
// are errors that name them.
func ParseSpec(r io.Reader) (*specs.Spec, error) { return ocispec.Decode(r) }

// CheckSpec returns an error unless Strata honours every field that is set in s and its value is valid; docs/status.md
// lists the fields. The error names the offending fields and matches ErrSpecRefused for those that Strata does not
// support.
func CheckSpec(s *specs.Spec) error { return ocispec.Check(s) }

func specProcess(s *specs.Spec, c image.Config, o SpecOptions) error {
	entry, args := c.Entrypoint, c.Cmd
	if o.Entrypoint != nil {
		entry, args = o.Entrypoint, nil
	}
	if len(o.Args) > 0 {
		args = o.Args
	}
	p := s.Process
	if p.Args = slices.Concat(entry, args); len(p.Args) == 0 {
		return fmt.Errorf("the image does not say what to run, and no program is given")
	}
	usual := []string{ocispec.DefaultPath}
	if o.Hostname != "" {
		usual = append(usual, "HOSTNAME="+o.Hostname)
	}
	if o.Terminal {
		usual = append(usual, "TERM=xterm")
		p.Terminal = true
		if o.Width > 0 && o.Height > 0 {
			p.ConsoleSize = &specs.Box{Width: o.Width, Height: o.Height}
		}
	}
	p.Env = ocispec.MergeEnv(usual, imageEnv(c), o.Env)
	p.Cwd = cmp.Or(o.WorkDir, path.Clean("/"+c.WorkingDir))
	s.Hostname = o.Hostname
	return nil
}

// imageEnv returns the image's environment without entries that are not KEY=VALUE.
func imageEnv(c image.Config) []string {
	return slices.DeleteFunc(slices.Clone(c.Env), func(kv string) bool { return strings.IndexByte(kv, '=') <= 0 })
}

// specUser sets uid and gid if the user is given as two numbers, else the name for whoever starts the program.
func specUser(s *specs.Spec, c image.Config, o SpecOptions) error {
	name := cmp.Or(o.User, c.User)
	u, g, both := strings.Cut(name, ":")
	uid, uerr := strconv.ParseUint(u, 10, 31)
	gid, gerr := strconv.ParseUint(g, 10, 31)
	switch {
	case name == "":
	case both && uerr == nil && gerr == nil:
		s.Process.User = specs.User{UID: uint32(uid), GID: uint32(gid)}
	default:
		s.Process.User.Username = name
	}
	s.Process.User.AdditionalGids = o.Groups
	return nil
}

func specRights(s *specs.Spec, _ image.Config, o SpecOptions) error {
	add := o.CapAdd
	if o.Privileged {
		add = append([]string{"ALL"}, add...)
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		for i, m := range s.Mounts {
			if m.Type == "sysfs" || m.Type == "cgroup" {
				s.Mounts[i].Options = slices.DeleteFunc(m.Options, func(o string) bool { return o == "ro" })
			}
		}
	}
	caps, err := ocispec.ChooseCapabilities(add, o.CapDrop)
	if err != nil {
		return err
	}
	s.Process.Capabilities = ocispec.Capabilities(caps)
	s.Process.NoNewPrivileges = o.NoNewPrivileges
	s.Root.Readonly = o.ReadonlyRoot
	return nil
}

func specSeccomp(s *specs.Spec, _ image.Config, o SpecOptions) (err error) {
	caps := s.Process.Capabilities.Bounding
	switch {
	case o.SeccompUnconfined && o.Seccomp != nil:
		return fmt.Errorf("seccomp: a profile cannot be combined with unconfined")
	case o.Seccomp != nil:
		s.Linux.Seccomp, err = ocispec.ParseSeccomp(o.Seccomp, caps)
	case !o.SeccompUnconfined && !o.Privileged:
		s.Linux.Seccomp, err = ocispec.DefaultSeccomp(caps)
	}
	return err
}

// cpuPeriod is the CFS period in microseconds: a container may run CPUs times that long in each.
const cpuPeriod = 100000

// maxCPUs bounds SpecOptions.CPUs.
const maxCPUs = 4096

// Resources returns the limits of o as OCI resources.
func (o SpecOptions) Resources() (*specs.LinuxResources, error) {
	r := &specs.LinuxResources{}
	if err := o.limit(r); err != nil {
		return nil, err
	}
	return r, ocispec.CheckResources(r)
}

// limit sets the limits of o in r.
func (o SpecOptions) limit(r *specs.LinuxResources) error {
	if o.Memory < 0 || o.PidsLimit < -1 || o.ShmSize < 0 {
		return fmt.Errorf("a limit is negative: memory %d, processes %d, shared memory %d",
			o.Memory, o.PidsLimit, o.ShmSize)
	}
	if o.Memory > 0 || o.MemorySwap != 0 {
		r.Memory = &specs.LinuxMemory{}
		if o.Memory > 0 {
			r.Memory.Limit = &o.Memory
		}
		if o.MemorySwap != 0 {
			r.Memory.Swap = &o.MemorySwap
		}
	}
	if math.IsNaN(o.CPUs) || o.CPUs < 0 || o.CPUs > maxCPUs || o.CPUs > 0 && o.CPUs < 0.01 {
		return fmt.Errorf("%v processors: give 0.01 to %d", o.CPUs, maxCPUs)
	}
	if o.CPUs > 0 || o.CPUShares > 0 {
		r.CPU = &specs.LinuxCPU{}
		if o.CPUs > 0 {
			quota, period := int64(math.Round(o.CPUs*cpuPeriod)), uint64(cpuPeriod)
			r.CPU.Quota, r.CPU.Period = &quota, &period
		}
		if o.CPUShares > 0 {
			r.CPU.Shares = &o.CPUShares
		}
	}
	if o.PidsLimit != 0 {
		r.Pids = &specs.LinuxPids{Limit: &o.PidsLimit}
	}
	return nil
}

func specResources(s *specs.Spec, _ image.Config, o SpecOptions) error {
	if err := o.limit(s.Linux.Resources); err != nil {
		return err
	}
	for _, l := range o.Rlimits {
		have := func(h specs.POSIXRlimit) bool { return h.Type == l.Type }
		s.Process.Rlimits = append(slices.DeleteFunc(s.Process.Rlimits, have), l)
	}
	s.Process.OOMScoreAdj = o.OOMScoreAdj
	return nil
}

func specFiles(s *specs.Spec, _ image.Config, o SpecOptions) error {
	if o.ShmSize > 0 {
		i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev/shm" })
		s.Mounts[i].Options[len(s.Mounts[i].Options)-1] = "size=" + strconv.FormatInt(o.ShmSize, 10)
	}
	defaults := len(s.Mounts)
	for _, m := range o.Mounts {
		same := func(h specs.Mount) bool { return ocispec.SamePlace(h.Destination, m.Destination) }
		if i := slices.IndexFunc(s.Mounts[:defaults], same); i >= 0 {
			s.Mounts = slices.Delete(s.Mounts, i, i+1)
			defaults--
		}
		s.Mounts = append(s.Mounts, m)
	}
	for _, d := range o.Devices {
		s.Linux.Devices = append(s.Linux.Devices, d.LinuxDevice)
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true,
			Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: cmp.Or(d.Access, "rwm")})
	}
	return nil
}

func specNetwork(s *specs.Spec, _ image.Config, o SpecOptions) error {
	if o.HostNetwork {
		s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool {
			return n.Type == specs.NetworkNamespace
		})
		clear(s.Linux.Sysctl)
	}
	if o.UserNamespace { // the gids of the range do not exist in it
		delete(s.Linux.Sysctl, "net.ipv4.ping_group_range")
	}
	maps.Copy(s.Linux.Sysctl, o.Sysctls)
	return nil
}

// specAnnotations sets the annotations that the OCI image specification derives from an image's configuration, then
// those of o.
func specAnnotations(s *specs.Spec, c image.Config, o SpecOptions) error {
	s.Annotations = map[string]string{}
	if c.StopSignal != "" {
		s.Annotations["org.opencontainers.image.stopSignal"] = c.StopSignal
	}
	if len(c.Ports) > 0 {
		s.Annotations["org.opencontainers.image.exposedPorts"] = strings.Join(c.Ports, ",")
	}
	for key, value := range c.Labels { // labels come with the image and must not configure the runtime
		if ocispec.PassedOn(key) {
			s.Annotations[key] = value
		}
	}
	maps.Copy(s.Annotations, o.Annotations)
	if o.Init {
		s.Annotations[ocispec.InitAnnotation] = "true"
	}
	var err error
	s.Annotations[ocispec.EtcAnnotation], err = ocispec.Etc{Hosts: o.Hosts, Nameservers: o.Nameservers, Search: o.Search,
		Options: o.ResolverOptions}.Annotation()
	return err
}
