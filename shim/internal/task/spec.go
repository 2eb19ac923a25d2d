package task

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/internal/ocispec"
	"github.com/stratavm/strata/shim/internal/options"
	"github.com/stratavm/strata/shim/internal/pod"
	"github.com/stratavm/strata/vmm"
)

// MaxDocument is the maximum size of a config.json or process spec, in bytes.
const MaxDocument = 4 << 20

// Annotations that set the size of a container's VM.
const (
	memoryAnnotation = "io.stratavm.memory" // MiB
	cpusAnnotation   = "io.stratavm.cpus"
)

const (
	defaultMemoryMiB = 512 // without annotation or option; a limit only raises it
	guestMiB         = 192 // for the guest's kernel and agent, on top of the container's limit
)

// document is a bundle's config.json, split into what the guest gets and what applies on the host.
type document struct {
	spec            *specs.Spec // for the guest
	root            string      // root.path on the host, as config.json has it
	memoryMiB, cpus int         // size of the VM; cpus 0: the default
	needMiB         int         // the container's memory limit, rounded up
	namespace       string      // the host's network namespace for the VM, or vmm.NewNamespace
	cgroup          string      // the host's control group for the VM; empty: that of this process
	sandbox         string      // id of the pod's sandbox, whose VM it joins; empty: it gets its own VM
}

// readDocument reads and checks a bundle's config.json. A field that cannot be honoured is an error that names it. The
// size of the VM is left to size.
func readDocument(bundle string) (document, error) {
	var d document
	f, err := os.Open(filepath.Join(bundle, "config.json"))
	if err != nil {
		return d, fmt.Errorf("config.json: %w", err)
	}
	defer f.Close()
	if d.spec, err = decode[specs.Spec](f); err != nil {
		return d, fmt.Errorf("config.json: %w", err)
	}
	if d.spec.Root != nil {
		d.root = d.spec.Root.Path
		d.spec.Root.Path = "rootfs"
	}
	sandbox, member := pod.Sandbox(d.spec.Annotations)
	var shared []int // indexes of the namespaces shared with the pod
	if member && sandbox == "" {
		return d, fmt.Errorf("config.json: annotations: it is that of a container of a pod, and names no "+
			"sandbox: %w", errdefs.ErrInvalidArgument)
	}
	if member {
		d.sandbox = sandbox
	}
	if err := errors.Join(checkAnnotations(d.spec.Annotations), checkNamespaces(d.spec.Linux),
		checkPropagation(d.spec.Mounts)); err != nil {
		return d, err
	}
	if l := d.spec.Linux; l != nil {
		if member { // any namespace path refers to the pod's namespace
			for i := range l.Namespaces {
				if l.Namespaces[i].Path != "" && l.Namespaces[i].Type != specs.MountNamespace {
					shared, l.Namespaces[i].Path = append(shared, i), ""
				}
			}
		}
		// The path is for the VM on the host. In the guest, the container gets its own control group.
		d.cgroup, l.CgroupsPath = l.CgroupsPath, ""
		i := slices.IndexFunc(l.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
		d.namespace = cmp.Or(l.Namespaces[i].Path, vmm.NewNamespace)
		l.Namespaces[i].Path = "" // in the guest, the container gets its own network namespace
		// On a host with cgroup v1, containerd asks for no cgroup namespace, so that a privileged container could write
		// to all groups. The guest has cgroup v2: the container gets a namespace as on a host with that.
		if !slices.ContainsFunc(l.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace }) {
			l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
		}
	}
	if err := strata.CheckSpec(d.spec); err != nil {
		return d, refused(err)
	}
	if err := checkDevices(d.spec.Linux); err != nil {
		return d, err
	}
	for _, i := range shared {
		d.spec.Linux.Namespaces[i].Path = ocispec.JoinPath(sandbox)
	}
	return d, nil
}

// commonDevices are the major and minor numbers that mean the same on every Linux: null, zero, full, random, urandom,
// tty, console, ptmx, net/tun and fuse.
var commonDevices = [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 1}, {5, 2}, {10, 200}, {10, 229}}

// checkDevices returns an error for a device of the host: in the guest its numbers may be those of another device, such
// as a disk of the VM.
func checkDevices(l *specs.Linux) error {
	if l == nil {
		return nil
	}
	for i, d := range l.Devices {
		character := d.Type == "c" || d.Type == "u"
		if d.Type == "p" || character && slices.Contains(commonDevices, [2]int64{d.Major, d.Minor}) {
			continue
		}
		return fmt.Errorf("config.json: linux.devices[%d]: %s (%s %d:%d) is a device of the host, which a VM "+
			"has not (for privileged pods: privileged_without_host_devices = true in containerd's configuration): %w", i,
			strconv.Quote(d.Path), d.Type, d.Major, d.Minor, errdefs.ErrNotImplemented)
	}
	return nil
}

// decode decodes exactly one JSON value of at most MaxDocument bytes; unknown fields are an error.
func decode[T any](r io.Reader) (*T, error) {
	limited := &io.LimitedReader{R: r, N: MaxDocument + 1}
	dec := json.NewDecoder(limited)
	dec.DisallowUnknownFields()
	v := new(T)
	err := dec.Decode(v)
	if err == nil {
		if _, rest := dec.Token(); rest != io.EOF {
			err = errors.New("data after the end of the JSON value")
		}
	}
	switch {
	case limited.N == 0:
		return nil, fmt.Errorf("it is larger than %d bytes: %w", MaxDocument, errdefs.ErrInvalidArgument)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	return v, nil
}

// refused wraps an error of CheckSpec in the class that containerd knows: not implemented, or invalid argument.
func refused(err error) error {
	if errors.Is(err, strata.ErrSpecRefused) {
		return fmt.Errorf("%w: %w", errdefs.ErrNotImplemented, err)
	}
	return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
}

// size sets the size of the VM: that of the annotations, else enough for the limits of the container and its pod, but
// not less than the options. It returns an error if an annotation is below a limit.
func (d *document) size(o options.Options) error {
	var limit int64
	var cpus float64
	if l := d.spec.Linux; l != nil && l.Resources != nil {
		if m := l.Resources.Memory; m != nil && m.Limit != nil {
			limit = max(0, *m.Limit)
		}
		if c := l.Resources.CPU; c != nil && c.Quota != nil && *c.Quota > 0 {
			period := uint64(100000)
			if c.Period != nil && *c.Period > 0 {
				period = *c.Period
			}
			cpus = float64(*c.Quota) / float64(period)
		}
	}
	memory, pcpus, err := pod.Size(d.spec.Annotations)
	if err != nil {
		return err
	}
	limit, cpus = max(limit, memory), max(cpus, pcpus)
	if d.memoryMiB, err = d.annotation(memoryAnnotation, options.MaxMemoryMiB); err != nil {
		return err
	}
	if d.cpus, err = d.annotation(cpusAnnotation, options.MaxCPUs); err != nil {
		return err
	}
	need := (limit + 1<<20 - 1) >> 20
	d.needMiB = int(min(need, options.MaxMemoryMiB+1))
	switch {
	case d.memoryMiB > 0 && int64(d.memoryMiB) < need:
		return fmt.Errorf("linux.resources.memory.limit is %d MiB, and annotation %s gives the VM %d: %w", need,
			memoryAnnotation, d.memoryMiB, errdefs.ErrInvalidArgument)
	case need > options.MaxMemoryMiB:
		return fmt.Errorf("linux.resources.memory.limit is %d MiB: no VM is so large: %w", need, errdefs.ErrInvalidArgument)
	case d.memoryMiB == 0:
		d.memoryMiB = defaultMemoryMiB
		if o.MemoryMiB != nil {
			d.memoryMiB = *o.MemoryMiB
		}
		if need > 0 {
			d.memoryMiB = max(d.memoryMiB, int(need+need/32)+guestMiB)
		}
	}
	switch {
	case d.cpus > 0 && cpus > float64(d.cpus):
		return fmt.Errorf("linux.resources.cpu allows %v processors, and annotation %s gives the VM %d: %w", cpus,
			cpusAnnotation, d.cpus, errdefs.ErrInvalidArgument)
	case cpus > options.MaxCPUs:
		return fmt.Errorf("linux.resources.cpu allows %v processors: no VM has so many: %w", cpus, errdefs.ErrInvalidArgument)
	case d.cpus == 0 && o.CPUs != nil:
		d.cpus = max(*o.CPUs, int(math.Ceil(cpus)))
	case d.cpus == 0 && cpus > 2: // 2 is the default
		d.cpus = int(math.Ceil(cpus))
	}
	return nil
}

// annotation returns an annotation's number, from 1 to most, or 0 if it is not set.
func (d *document) annotation(name string, most int) (int, error) {
	text, ok := d.spec.Annotations[name]
	if !ok {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
		return 0, fmt.Errorf("annotation %s: %q: give a number from 1 to %d: %w", name, text, most,
			errdefs.ErrInvalidArgument)
	}
	return n, nil
}

// processSpec converts an OCI process. ContainerID and Root are left to the caller.
func processSpec(p *specs.Process) vmm.ProcessSpec {
	s := vmm.ProcessSpec{Args: p.Args, Env: p.Env, Dir: p.Cwd, Terminal: p.Terminal,
		User: fmt.Sprintf("%d:%d", p.User.UID, p.User.GID)}
	if p.User.Username != "" {
		s.User = p.User.Username
	}
	if p.ConsoleSize != nil && p.Terminal {
		s.Width, s.Height = uint16(p.ConsoleSize.Width), uint16(p.ConsoleSize.Height)
	}
	return s
}

// checkExec returns an error if an exec process asks for a setting that it can only inherit from the container's first
// process, such as other capabilities.
func checkExec(p, first *specs.Process) error {
	whole := &specs.Spec{Version: specs.Version, Process: p, Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
		{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}}}}
	if err := strata.CheckSpec(whole); err != nil {
		return refused(err)
	}
	for _, f := range []struct {
		name     string
		of, like specs.Process
	}{
		{"capabilities", specs.Process{Capabilities: p.Capabilities}, specs.Process{Capabilities: first.Capabilities}},
		{"rlimits", specs.Process{Rlimits: p.Rlimits}, specs.Process{Rlimits: first.Rlimits}},
		{"noNewPrivileges", specs.Process{NoNewPrivileges: p.NoNewPrivileges},
			specs.Process{NoNewPrivileges: first.NoNewPrivileges}},
		{"oomScoreAdj", specs.Process{OOMScoreAdj: p.OOMScoreAdj}, specs.Process{OOMScoreAdj: first.OOMScoreAdj}},
		{"user.umask", specs.Process{User: specs.User{Umask: p.User.Umask}},
			specs.Process{User: specs.User{Umask: first.User.Umask}}},
		{"user.additionalGids", specs.Process{User: specs.User{AdditionalGids: p.User.AdditionalGids}},
			specs.Process{User: specs.User{AdditionalGids: first.User.AdditionalGids}}},
	} {
		of, err := json.Marshal(f.of)
		like, lerr := json.Marshal(f.like)
		if err := errors.Join(err, lerr); err != nil {
			return err
		}
		if !bytes.Equal(of, like) {
			return fmt.Errorf("process.%s of an exec process differs from that of the container's first process: %w",
				f.name, errdefs.ErrNotImplemented)
		}
	}
	return nil
}
