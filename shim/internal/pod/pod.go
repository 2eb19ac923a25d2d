// Package pod manages the VM that a pod's containers, or a single container, run in.
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
	"github.com/stratavm/strata/shim/internal/options"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

const (
	defaultState = "/run/strata/shim" // does not survive a reboot, like VMs
	// StateEnv is the environment variable of containerd that names another directory for the state of VMs.
	StateEnv = "STRATA_SHIM_STATE"
	// TemplateEnv is the environment variable of containerd that has VMs restored from templates: a bool.
	TemplateEnv = "STRATA_TEMPLATE"
)

// Dir returns the state directory of a task's VM. namespace is containerd's; each one is a state directory of the
// strata command.
func Dir(namespace, id string) (string, error) {
	for _, name := range []string{namespace, id} { // they become directory names
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

// maxName is the maximum length of a VM's name in bytes.
const maxName = 64

// tries is how often creating a VM's directory is tried while another shim removes its parent, that of the namespace.
const tries = 10

// parentGone reports whether mkdir failed because the parent does not exist.
func parentGone(err error) bool {
	mkdir, ok := errors.AsType[*fs.PathError](err)
	return ok && mkdir.Op == "mkdir" && errors.Is(mkdir, fs.ErrNotExist)
}

// Options configure a pod's VM.
type Options struct {
	Dir       string // the state directory
	MemoryMiB int
	CPUs      int // 0: as many as the host has, at most 2
	// Namespace is the file of the network namespace that the VM's process is in, or vmm.NewNamespace.
	Namespace string
	// Cgroup is the host's control group that this process joins first, so that its child processes are in it. If it is
	// empty or one of systemd's, the process stays in its group.
	Cgroup string
	// Forward relays connections to loopback addresses of the namespace to the VM, if the host supports it.
	Forward bool
	Runtime options.Options
	Logger  *slog.Logger
}

// Pod is a running VM. Its methods may be called concurrently.
type Pod struct {
	dir    string
	pid    int
	netns  string // the file of the network namespace of its process
	vm     *uvm.UtilityVM
	runner strata.Runner
	ports  bool // Options.Forward
	log    *slog.Logger

	mu        sync.Mutex
	ended     bool // End was called
	forwarder *forward.Forwarder
}

// vm returns the options of the VM. The runtime's options take precedence over containerd's environment.
func (o Options) vm() (strata.VMOptions, error) {
	cache, err := os.UserCacheDir()
	if err != nil { // a service may have no $HOME
		cache = "/var/cache"
	}
	name, r := filepath.Base(o.Dir), o.Runtime
	v := strata.VMOptions{Dir: o.Dir, Name: name[:min(len(name), maxName)], MemoryMiB: o.MemoryMiB, CPUs: o.CPUs,
		Accel: r.Accel, Namespace: o.Namespace, Logger: o.Logger, Boot: strata.BootOptions{Logger: o.Logger,
			CacheDir: filepath.Join(cache, "strata", "boot"), Kernel: r.Kernel, Release: r.Release,
			ModulesDir: r.Modules, InitPath: r.Init}}
	if r.Template != nil {
		v.Template = *r.Template
	} else if s := os.Getenv(TemplateEnv); s != "" {
		if v.Template, err = strconv.ParseBool(s); err != nil {
			return v, fmt.Errorf("%s=%q in the environment of containerd: use 1 or 0", TemplateEnv, s)
		}
	}
	return v, nil
}

// Start starts a VM. On error everything is undone but the control group, in which this process stays.
func Start(ctx context.Context, o Options) (*Pod, error) {
	if o.Cgroup != "" {
		err := cgroup.Join(o.Cgroup)
		if errors.Is(err, cgroup.ErrSystemd) {
			o.Logger.Warn("the VM is in the control group of containerd", "error", err)
		} else if err != nil {
			return nil, err
		}
	}
	v, err := o.vm()
	if err != nil {
		return nil, fmt.Errorf("start a VM: %w", err)
	}
	var vm *uvm.UtilityVM
	for range tries {
		vm, err = strata.StartVM(ctx, v)
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
		if p.pid = info.PID; p.netns == vmm.NewNamespace { // it lives as long as that process
			p.netns = fmt.Sprintf("/proc/%d/ns/net", p.pid)
		}
		p.runner, err = strata.OpenRunner(ctx, o.Dir, strata.OpenOptions{Logger: o.Logger})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start a VM: %w", err), p.End(context.WithoutCancel(ctx)))
	}
	return p, nil
}

// PID returns the process ID of the VM's process on the host.
func (p *Pod) PID() int { return p.pid }

// Mount mounts the root of a container in the VM.
func (p *Pod) Mount(ctx context.Context, r layers.Request) (*layers.Mounted, error) {
	r.VM = p.vm
	return layers.Mount(ctx, r)
}

// networkRole is the role of a network's leases in a container's claim.
const networkRole = "network"

// Connect attaches a mounted container to the interfaces with addresses that the VM's network namespace on the host has
// now. If there are none the container has only its loopback interface. It is idempotent.
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

// forwardPorts relays connections to loopback addresses of the namespace to the VM's first global unicast address, for
// kubectl port-forward. If the host does not support it, that is logged.
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

// Exec starts a process in the VM. If the guest does not answer in time, the stacks of its agent are logged.
func (p *Pod) Exec(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	proc, err := p.runner.Exec(ctx, spec)
	if err != nil && errors.Is(context.Cause(ctx), uvm.ErrNoAnswer) {
		p.logStacks(ctx)
	}
	return proc, err
}

const (
	stacksTimeout = 5 * time.Second
	maxStacks     = 32 << 10 // bytes that are logged
)

func (p *Pod) logStacks(ctx context.Context) {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), stacksTimeout)
	defer cancel()
	stacks, err := p.vm.Machine().Stacks(limited)
	p.log.Error("the guest does not start a program", "stacks", stacks[:min(len(stacks), maxStacks)], "error", err)
}

// Stats returns the resource usage of a running container.
func (p *Pod) Stats(ctx context.Context, id string) (vmm.ContainerStats, error) {
	s, ok := p.runner.(vmm.ContainerStatist)
	if !ok {
		return vmm.ContainerStats{}, errors.ErrUnsupported
	}
	return s.ContainerStats(ctx, id)
}

// Pause stops all processes of a running container.
func (p *Pod) Pause(ctx context.Context, id string) error {
	c, err := p.controller()
	if err != nil {
		return err
	}
	return c.PauseContainer(ctx, id)
}

// Resume resumes a paused container.
func (p *Pod) Resume(ctx context.Context, id string) error {
	c, err := p.controller()
	if err != nil {
		return err
	}
	return c.ResumeContainer(ctx, id)
}

// Update changes the resource limits of a running container.
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

// Watch blocks until the server of one of a container's host volumes fails, and returns an error that names the volume,
// or the cause of the end of ctx.
func (p *Pod) Watch(ctx context.Context, m *layers.Mounted) error {
	return m.WatchVolumes(ctx, p.runner)
}

// End kills the VM and removes its state. It is idempotent.
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

// Remove kills a VM, also one that another process has started, and removes its state. A VM that does not exist is no
// error.
func Remove(ctx context.Context, dir string) error {
	if err := strata.KillVM(ctx, dir); err != nil && !errors.Is(err, strata.ErrNoVM) {
		return fmt.Errorf("end the VM: %w", err)
	}
	return removeEmpty(dir)
}

// removeEmpty removes the directories of a namespace once they have no VM. dir must not exist any more.
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
