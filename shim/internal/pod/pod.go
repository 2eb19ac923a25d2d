// Package pod is the VM that containers of containerd run in. Today each container has one of its own.
package pod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/pkg/identifiers"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/shim/internal/cgroup"
	"github.com/stratavm/strata/shim/internal/forward"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// Where the state directories of VMs are. It goes with the boot of the host, as VMs do.
const (
	defaultState = "/run/strata/shim"
	// StateEnv is the environment variable of containerd that names another place.
	StateEnv = "STRATA_SHIM_STATE"
	// TemplateEnv is the environment variable of containerd that has VMs loaded from templates: a bool.
	TemplateEnv = "STRATA_TEMPLATE"
)

// Dir is the state directory of the VM of a task in a namespace of containerd. Each namespace is a state directory of
// strata's.
func Dir(namespace, id string) (string, error) {
	for _, name := range []string{namespace, id} { // they become names of folders
		if err := identifiers.Validate(name); err != nil {
			return "", err
		}
	}
	state := os.Getenv(StateEnv)
	if state == "" {
		state = defaultState
	}
	return filepath.Join(state, namespace, "vms", id), nil
}

// maxName is how long a VM's name may be.
const maxName = 64

// tries is how often a VM's folder is made that goes with its parent, the folder of the namespace, which another shim
// removes just then.
const tries = 10

// parentGone reports whether a folder could not be made because its parent is not there.
func parentGone(err error) bool {
	mkdir, ok := errors.AsType[*fs.PathError](err)
	return ok && mkdir.Op == "mkdir" && errors.Is(mkdir, fs.ErrNotExist)
}

// Options say what VM a pod has.
type Options struct {
	Dir       string // the state directory
	MemoryMiB int
	CPUs      int // 0: as many as the host has, at most 2
	// Namespace is the file of the network namespace that the VM's process is in, or vmm.NewNamespace.
	Namespace string
	// Cgroup is the control group of the host that this process joins first, and with it what it starts; empty: it stays
	// where it is. It stays there too where the group is one of systemd's.
	Cgroup string
	// Forward has connections to loopback addresses of the namespace reach the VM, where the host can do it.
	Forward bool
	Logger  *slog.Logger
}

// Pod is a VM that runs. Its methods may be called concurrently.
type Pod struct {
	dir    string
	pid    int
	netns  string // the file of the network namespace of its process
	vm     *uvm.UtilityVM
	runner strata.Runner
	ports  bool // are forwarded
	log    *slog.Logger

	mu        sync.Mutex // ends come one after the other
	ended     bool       // End was called
	forwarder *forward.Forwarder
}

// Start starts a VM. When it fails nothing is left but the control group, which this process is in.
func Start(ctx context.Context, o Options) (*Pod, error) {
	if o.Cgroup != "" {
		err := cgroup.Join(o.Cgroup)
		if errors.Is(err, cgroup.ErrSystemd) {
			o.Logger.Warn("the VM is in the control group of containerd", "error", err)
		} else if err != nil {
			return nil, err
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil { // a service has no home
		cache = "/var/cache"
	}
	boot := strata.BootOptions{Logger: o.Logger, CacheDir: filepath.Join(cache, "strata", "boot")}
	template := false
	if s := os.Getenv(TemplateEnv); s != "" {
		if template, err = strconv.ParseBool(s); err != nil {
			return nil, fmt.Errorf("start a VM: %s=%q in the environment of containerd: use 1 or 0", TemplateEnv, s)
		}
	}
	name := filepath.Base(o.Dir)
	var vm *uvm.UtilityVM
	for range tries {
		vm, err = strata.StartVM(ctx, strata.VMOptions{Dir: o.Dir, Name: name[:min(len(name), maxName)],
			MemoryMiB: o.MemoryMiB, CPUs: o.CPUs, Namespace: o.Namespace, Template: template, Boot: boot,
			Logger: o.Logger})
		if !parentGone(err) {
			break
		}
	}
	if errors.Is(err, syscall.ENOSPC) {
		err = fmt.Errorf("%w: make room in %s, or name another place by %s", err, o.Dir, StateEnv)
	}
	if err != nil {
		return nil, fmt.Errorf("start a VM: %w", errors.Join(err, removeEmpty(o.Dir)))
	}
	p := &Pod{dir: o.Dir, vm: vm, netns: o.Namespace, ports: o.Forward, log: o.Logger}
	info, err := strata.InspectVM(ctx, o.Dir)
	if err == nil {
		if p.pid = info.PID; p.netns == vmm.NewNamespace { // which ends with that process
			p.netns = fmt.Sprintf("/proc/%d/ns/net", p.pid)
		}
		p.runner, err = strata.OpenRunner(ctx, o.Dir, strata.OpenOptions{Logger: o.Logger})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start a VM: %w", err), p.End(context.WithoutCancel(ctx)))
	}
	return p, nil
}

// PID is the number of the VM's process on the host.
func (p *Pod) PID() int { return p.pid }

// Mount mounts the root of a container in the VM.
func (p *Pod) Mount(ctx context.Context, r layers.Request) (*layers.Mounted, error) {
	r.VM = p.vm
	return layers.Mount(ctx, r)
}

// networkRole is what the network of a container is to its claim in the VM.
const networkRole = "network"

// Connect gives a container that is mounted the interfaces that are in the VM's network namespace now and have
// addresses. Without any it has the loopback interface of its own only. It may be called again.
func (p *Pod) Connect(ctx context.Context, id string) error {
	claim, err := p.vm.FindClaim(id)
	if err != nil {
		return fmt.Errorf("the container's network: %w", err)
	}
	if slices.ContainsFunc(claim.Leases(), func(l *uvm.Lease) bool { return l.Role() == networkRole }) {
		return nil
	}
	n, err := strata.NetworkNamespace(p.netns)
	if err != nil {
		return fmt.Errorf("the container's network: %w", err)
	}
	if len(n.Links) == 0 {
		return nil
	}
	leases, err := p.vm.AttachNetwork(ctx, claim, networkRole, n)
	if err == nil {
		p.forwardPorts(n)
		return nil
	}
	undo, cancel := p.vm.RollbackContext(ctx)
	defer cancel()
	for _, l := range leases {
		err = errors.Join(err, l.Release(undo))
	}
	return fmt.Errorf("the container's network: %w", err)
}

// forwardPorts has connections to loopback addresses of the namespace reach the interfaces that the VM has now, which is
// all that kubectl port-forward needs. A host that cannot do it goes without.
func (p *Pod) forwardPorts(n uvm.Network) {
	var addresses []netip.Prefix
	for _, l := range n.Links {
		addresses = append(addresses, l.Addresses...)
	}
	i := slices.IndexFunc(addresses, func(a netip.Prefix) bool { return a.Addr().IsGlobalUnicast() })
	p.mu.Lock()
	defer p.mu.Unlock()
	if i < 0 || !p.ports || p.ended || p.forwarder != nil {
		return
	}
	namespace, err := os.Open(n.Namespace)
	if err == nil {
		p.forwarder, err = forward.New(namespace, addresses[i].Addr(), p.log)
		err = errors.Join(err, namespace.Close())
	}
	if err != nil {
		p.log.Warn("ports of the pod are not forwarded", "error", err)
	}
}

// Exec starts a program in the VM. Where the guest does not answer in time it is logged what its agent does.
func (p *Pod) Exec(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	proc, err := p.runner.Exec(ctx, spec)
	if err != nil && errors.Is(context.Cause(ctx), uvm.ErrNoAnswer) {
		p.logStacks(ctx)
	}
	return proc, err
}

// How long the guest's agent may take to say what it does, and how much of that is logged, in bytes.
const (
	stacksTime = 5 * time.Second
	maxStacks  = 32 << 10
)

func (p *Pod) logStacks(ctx context.Context) {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), stacksTime)
	defer cancel()
	stacks, err := p.vm.Machine().Stacks(limited)
	p.log.Error("the guest does not start a program", "stacks", stacks[:min(len(stacks), maxStacks)], "error", err)
}

// Stats says what a container uses that runs.
func (p *Pod) Stats(ctx context.Context, id string) (vmm.ContainerStats, error) {
	s, ok := p.runner.(vmm.ContainerStatist)
	if !ok {
		return vmm.ContainerStats{}, errors.ErrUnsupported
	}
	return s.ContainerStats(ctx, id)
}

// Pause stops all processes of a container that runs.
func (p *Pod) Pause(ctx context.Context, id string) error {
	c, err := p.controller()
	if err != nil {
		return err
	}
	return c.PauseContainer(ctx, id)
}

// Resume lets a container go on that is paused.
func (p *Pod) Resume(ctx context.Context, id string) error {
	c, err := p.controller()
	if err != nil {
		return err
	}
	return c.ResumeContainer(ctx, id)
}

// Update changes the limits of a container that runs.
func (p *Pod) Update(ctx context.Context, id string, r specs.LinuxResources) error {
	c, err := p.controller()
	if err != nil {
		return err
	}
	return c.UpdateContainer(ctx, id, r)
}

func (p *Pod) controller() (vmm.ContainerController, error) {
	c, ok := p.runner.(vmm.ContainerController)
	if !ok {
		return nil, fmt.Errorf("pausing and updating containers: %w", errors.ErrUnsupported)
	}
	return c, nil
}

// Watch waits until something that a container has of the host is not served any more, and returns an error that names
// it, or the cause of the end of ctx.
func (p *Pod) Watch(ctx context.Context, m *layers.Mounted) error {
	return m.WatchVolumes(ctx, p.runner)
}

// End ends the VM at once. It may be called again.
func (p *Pod) End(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	err := Remove(ctx, p.dir)
	if p.forwarder != nil {
		err = errors.Join(err, p.forwarder.Close())
		p.forwarder = nil
	}
	if p.runner != nil {
		_ = p.runner.Close() // what it is connected to is gone
	}
	_ = p.vm.Close() // for the same reason
	return err
}

// Remove ends a VM at once, by whichever process it was started, and removes its state. One that does not exist is no
// error.
func Remove(ctx context.Context, dir string) error {
	if err := strata.KillVM(ctx, dir); err != nil && !errors.Is(err, strata.ErrNoVM) {
		return fmt.Errorf("end the VM: %w", err)
	}
	return removeEmpty(dir)
}

// removeEmpty removes the folders of a namespace with the last VM in them.
func removeEmpty(dir string) error {
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("the state directory %s is still there", dir)
	}
	vms := filepath.Dir(dir)
	if os.Remove(vms) == nil { // otherwise another VM is in it
		_ = os.Remove(filepath.Dir(vms))
	}
	return nil
}
