package task

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/shim/internal/options"
	"github.com/stratavm/strata/shim/internal/rootfs"
	"github.com/stratavm/strata/shim/internal/stdio"
	"github.com/stratavm/strata/vmm"
)

// Machine is the VM that a container runs in: a *pod.Pod, or a fake in tests.
type Machine interface {
	PID() int
	Mount(ctx context.Context, r layers.Request) (*layers.Mounted, error)
	Connect(ctx context.Context, id string) error
	Exec(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error)
	Stats(ctx context.Context, id string) (vmm.ContainerStats, error)
	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
	Update(ctx context.Context, id string, r specs.LinuxResources) error
	Watch(ctx context.Context, m *layers.Mounted) error
	End(ctx context.Context) error
}

// container is a container with its VM.
type container struct {
	id, bundle string
	doc        document
	machine    *sharedVM
	mounted    *layers.Mounted
	init       *process
	send       func(event any)
	holds      bool // it is a pod's Holder, unknown to containerd
	log        *slog.Logger

	changing chan struct{} // semaphore of capacity 1, held while the container is paused, resumed or updated

	mu     sync.Mutex
	paused bool
	execs  map[string]*process
	pids   []uint32           // guest PIDs as of the last successful query
	used   vmm.ContainerStats // statistics as of the last successful query, without processes
	ooms   uint64             // processes that SIGKILL ended after OOM kills in the container
}

const (
	cleanupTimeout = 30 * time.Second // undoing a failed create or start
	unmountTimeout = 30 * time.Second // unmounting in a VM that is about to end
	execsTimeout   = 5 * time.Second  // for all exec processes to exit after the container's first process
)

// unmountLimit returns how long unmounting may take: at most half of the time left until ctx's deadline, so that the
// other half is left to end the VM.
func unmountLimit(ctx context.Context) time.Duration {
	if end, ok := ctx.Deadline(); ok {
		return min(unmountTimeout, time.Until(end)/2)
	}
	return unmountTimeout
}

// newContainer starts the container's VM, unless its pod has one, and mounts the root in it. On error everything is
// undone.
func (s *Service) newContainer(ctx context.Context, r *taskapi.CreateTaskRequest, holds bool,
) (_ *container, err error) {
	doc, err := readDocument(r.Bundle)
	if err != nil {
		return nil, err
	}
	var o options.Options
	if doc.sandbox == "" { // a member of a pod runs in a VM that was started with the options as they were then
		if o, err = s.options(r); err != nil {
			return nil, err
		}
	}
	if err := doc.size(o); err != nil {
		return nil, err
	}
	if err := checkSources(doc.spec.Mounts); err != nil { // before a VM is started for them
		return nil, err
	}
	volumes := strata.BindVolumes(doc.spec)
	plan, err := rootfs.New(r.Rootfs, r.Bundle, doc.root)
	if err != nil {
		return nil, err
	}
	if plan.Disks == nil && len(plan.Mounts) == 0 {
		if err := checkFolder(plan.Folder); err != nil {
			return nil, fmt.Errorf("root file system: %w", err)
		}
	}
	c := &container{id: r.ID, bundle: r.Bundle, doc: doc, send: s.Events.Send, holds: holds, log: s.Logger,
		execs: map[string]*process{}, changing: make(chan struct{}, 1)}
	if holds {
		c.send = func(any) {}
	}
	names := stdio.Names{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal,
		Namespace: s.Namespace, ID: r.ID}
	spec := processSpec(doc.spec.Process)
	spec.ContainerID, spec.First, spec.MakeDir, spec.Hostname = r.ID, true, true, doc.spec.Hostname
	spec.Terminal = r.Terminal
	if c.init, err = newProcess("", names, spec); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
			defer cancel()
			err = errors.Join(err, c.release(limited))
		}
	}()
	request, err := plan.Request(layers.Request{ID: r.ID, Volumes: volumes})
	if err != nil {
		return nil, err
	}
	if err := plan.Mount(ctx); err != nil {
		return nil, err
	}
	limited, cancel := noAnswer(ctx, createTimeout)
	defer cancel()
	if c.machine, err = s.vmFor(limited, c, o); err != nil {
		return nil, err
	}
	c.mounted, err = c.machine.Mount(limited, request)
	if err != nil {
		return nil, err
	}
	if holds {
		c.machine.files = c.mounted.Root
	}
	c.init.spec.Root = c.mounted.Root
	c.init.spec.Spec = c.addPodFiles(strata.PlaceVolumes(doc.spec, volumes, c.mounted.VolumePaths))
	if ctx.Err() != nil { // the caller has gone: nobody would delete the container
		return nil, context.Cause(ctx)
	}
	return c, nil
}

// release unmounts the root, closes the streams and, with the last container of the VM, ends the VM. It is idempotent
// and may be retried after an error.
func (c *container) release(ctx context.Context) error {
	var err error
	if c.machine != nil {
		err = c.machine.remove(ctx, c)
	}
	if err != nil && c.machine.shared() { // the root is still in use
		return err
	}
	c.init.io.Close()
	for _, p := range c.others() {
		p.io.Close()
	}
	return errors.Join(err, rootfs.Unmount(c.bundle))
}

// others returns the exec processes.
func (c *container) others() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.execs))
}

// process returns a process by its exec id; the empty id is the first process.
func (c *container) process(id string) (*process, error) {
	if id == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.execs[id]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("process %q of container %q: %w", id, c.id, errdefs.ErrNotFound)
}

// start starts a process and sends its start event. Its exit is handled in the background.
func (c *container) start(ctx context.Context, p *process) error {
	if p != c.init {
		if s, _, _ := c.init.status(); s != task.Status_RUNNING {
			return fmt.Errorf("the container does not run: %w", errdefs.ErrFailedPrecondition)
		}
	}
	exec := c.machine.Exec
	if p == c.init && c.doc.sandbox == "" { // by now CNI plugins have set up the interfaces of the namespace
		exec = func(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
			ctx, served := c.untilUnserved(ctx)
			defer served()
			if err := c.machine.Connect(ctx, c.id); err != nil {
				return nil, err
			}
			return c.machine.Exec(ctx, spec)
		}
	}
	if err := p.start(ctx, exec); err != nil {
		return fmt.Errorf("start %q: %w", p.spec.Args[0], err)
	}
	pid := uint32(c.machine.PID())
	if p == c.init {
		c.send(&eventsapi.TaskStart{ContainerID: c.id, Pid: pid})
		go c.waitInit()
		return nil
	}
	c.send(&eventsapi.TaskExecStarted{ContainerID: c.id, ExecID: p.id, Pid: pid})
	go func() {
		c.wait(p)
		c.finish(p)
	}()
	return nil
}

// untilUnserved returns a context that is cancelled when the server of one of the container's host volumes fails: the
// guest would block on it for ever. The caller must call end.
func (c *container) untilUnserved(ctx context.Context) (_ context.Context, end func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		if err := c.machine.Watch(ctx, c.mounted); ctx.Err() == nil {
			cancel(err)
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-over
	}
}

// wait waits until a process has ended, and reports an out-of-memory kill to containerd.
func (c *container) wait(p *process) {
	if err := p.wait(context.Background()); err != nil {
		c.log.Error("wait for a process", "container", c.id, "process", p.id, "error", err)
	}
	if o, ok := p.proc.(vmm.OutOfMemory); ok && o.OutOfMemory() {
		c.mu.Lock()
		c.ooms++
		c.mu.Unlock()
		c.send(&eventsapi.TaskOOM{ContainerID: c.id})
	}
}

// waitInit waits for the end of the first process, and up to execsTimeout for that of the exec processes, which end
// with it. If a server of the container's host volumes fails, its processes may hang for ever: then the VM is ended.
func (c *container) waitInit() {
	watch, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		if err := c.machine.Watch(watch, c.mounted); watch.Err() == nil {
			c.log.Error("the VM is ended", "container", c.id, "error", err)
			limited, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
			defer cancel()
			if err := c.machine.endAll(limited); err != nil {
				c.log.Error("end the VM", "container", c.id, "error", err)
			}
		}
	}()
	c.wait(c.init)
	ends, stop := context.WithTimeout(context.Background(), execsTimeout) // of all of them
	defer stop()
	for _, p := range c.others() {
		if s, _, _ := p.status(); s == task.Status_CREATED {
			continue
		}
		p.io.GiveUp(killedTimeout)
		select {
		case <-p.done:
		case <-ends.Done():
			c.log.Warn("a process outlives its container", "container", c.id, "process", p.id)
		}
	}
	c.finish(c.init)
}

// finish records a process's exit, sends its exit event and wakes those that wait for it.
func (c *container) finish(p *process) {
	_, code, exited := p.status()
	id := p.id
	if p == c.init {
		id = c.id
		if err := writeExit(c.bundle, exit{c.machine.PID(), code, exited}); err != nil {
			c.log.Error("record the exit", "container", c.id, "error", err)
		}
	}
	p.io.Close()
	c.send(&eventsapi.TaskExit{ContainerID: c.id, ID: id, Pid: uint32(c.machine.PID()), ExitStatus: uint32(code),
		ExitedAt: timestamppb.New(exited)})
	p.finish() // unblocks Delete, whose event must come after this one
}

// kill sends a signal to a process. If the guest does not answer a SIGKILL of the container's first process, kill ends
// the VM.
func (c *container) kill(ctx context.Context, p *process, sig uint32) error {
	err := c.signal(ctx, p, sig)
	if p == c.init && sig == uint32(syscall.SIGKILL) { // a busy VM is no reason to end its other containers: retry
		end := time.Now().Add(answerTimeout)
		for errors.Is(err, context.DeadlineExceeded) && !errdefs.IsFailedPrecondition(err) && ctx.Err() == nil &&
			c.machine.shared() && time.Now().Before(end) {
			err = c.signal(ctx, p, sig)
		}
	}
	if err != nil && !errdefs.IsNotFound(err) && p == c.init && sig == uint32(syscall.SIGKILL) {
		if c.machine.shared() && (ctx.Err() != nil || errdefs.IsFailedPrecondition(err)) {
			return err // no reason to end the VM's other containers
		}
		c.log.Error("the guest does not answer, and its VM is ended", "container", c.id, "error", err)
		return c.machine.endAll(ctx)
	}
	return err
}

func (c *container) signal(ctx context.Context, p *process, sig uint32) error {
	if s, _, _ := p.status(); s == task.Status_STOPPED { // without hold: Delete may have it
		return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	}
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	release, err := p.hold(starting) // if the process is being started, wait until it runs
	if err != nil && ctx.Err() == nil && c.machine.shared() {
		err = fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
	}
	if err != nil {
		return err
	}
	defer release()
	switch s, _, _ := p.status(); {
	case s == task.Status_STOPPED:
		return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	case s == task.Status_RUNNING:
		return p.signal(ctx, sig)
	case sig != uint32(syscall.SIGKILL) && sig != uint32(syscall.SIGTERM):
		return fmt.Errorf("the process was not started: %w", errdefs.ErrFailedPrecondition)
	}
	p.end(128 + int(sig))
	c.finish(p)
	return nil
}

// killAll sends a signal to the container's first process and its exec processes.
func (c *container) killAll(ctx context.Context, sig uint32) error {
	err := c.kill(ctx, c.init, sig)
	limited, cancel := context.WithTimeout(ctx, signalTimeout) // for all of them
	defer cancel()
	for _, p := range c.others() {
		if s, _, _ := p.status(); s != task.Status_RUNNING {
			continue
		}
		if perr := c.kill(limited, p, sig); perr != nil && !errdefs.IsNotFound(perr) && !errors.Is(perr, vmm.ErrGone) {
			err = errors.Join(err, fmt.Errorf("process %q: %w", p.id, perr))
		}
	}
	return err
}
