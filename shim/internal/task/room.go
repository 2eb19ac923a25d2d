package task

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/stratavm/strata/shim/internal/cgroup"
	"github.com/stratavm/strata/shim/internal/pod"
)

// room is a VM with the containers that are in it. It ends with the last of them.
type room struct {
	Machine
	memoryMiB int
	cgroup    string // the control group that was made for it, or empty
	files     string // the guest's path of what all containers of a pod have, see Hold; empty: containerd gives it to each

	leaving sync.Mutex // one after the other

	mu     sync.Mutex
	in     map[*container]bool
	closed bool // the last one leaves, or has left
}

// room starts a VM for a container, or finds that of its pod.
func (s *Service) room(ctx context.Context, c *container) (*room, error) {
	if id := c.doc.sandbox; id != "" {
		of, err := s.container(id)
		if err != nil {
			return nil, fmt.Errorf("the sandbox of the pod: %w", err)
		}
		if err := writeCgroup(c.bundle, of.machine.cgroup); err != nil { // its end may be that of the VM
			return nil, err
		}
		return of.machine, of.machine.enter(c)
	}
	dir, err := pod.Dir(s.Namespace, c.id)
	if err != nil {
		return nil, err
	}
	made := ""
	if cgroup.Makes(c.doc.cgroup) { // one that there was is somebody else's
		made = c.doc.cgroup
	}
	if err := writeCgroup(c.bundle, made); err != nil {
		return nil, err
	}
	sandbox, _ := pod.Sandbox(c.doc.spec.Annotations) // in a namespace that is not a pod's others may listen
	m, err := s.StartVM(ctx, pod.Options{Dir: dir, MemoryMiB: c.doc.memoryMiB, CPUs: c.doc.cpus,
		Namespace: c.doc.namespace, Cgroup: c.doc.cgroup, Forward: sandbox != "", Logger: s.Logger})
	if err != nil {
		return nil, err
	}
	return &room{Machine: m, memoryMiB: c.doc.memoryMiB, cgroup: made, in: map[*container]bool{c: true}}, nil
}

// enter puts a container beside the others.
func (r *room) enter(c *container) error {
	if c.doc.needMiB > r.memoryMiB {
		return fmt.Errorf("linux.resources.memory.limit is %d MiB, and the VM of the pod has %d MiB: %w", c.doc.needMiB,
			r.memoryMiB, errdefs.ErrInvalidArgument)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return fmt.Errorf("the VM of the pod has ended: %w", errdefs.ErrFailedPrecondition)
	}
	r.in[c] = true
	return nil
}

// alone reports whether there is no other container.
func (r *room) alone() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.in) < 2
}

// leave takes a container out, and ends the VM that nobody is in any more. It may be called again.
func (r *room) leave(ctx context.Context, c *container) error {
	r.leaving.Lock()
	defer r.leaving.Unlock()
	r.mu.Lock()
	in, last := r.in[c], len(r.in) == 1
	r.closed = r.closed || in && last
	r.mu.Unlock()
	if !in {
		return nil
	}
	if c.mounted != nil { // so that what was written arrives
		limited, cancel := context.WithTimeout(ctx, unmounting(ctx))
		err := c.mounted.Release(limited)
		cancel()
		if err != nil && !last {
			return fmt.Errorf("unmount the root in the VM of the pod: %w", err)
		}
		if err != nil {
			c.log.Warn("the VM ends with the root mounted", "container", c.id, "error", err)
		}
	}
	if last {
		if err := r.End(ctx); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.in, c)
	return nil
}

// close ends the VM if somebody is left in it.
func (r *room) close(ctx context.Context) error {
	r.mu.Lock()
	left := len(r.in)
	r.mu.Unlock()
	if left == 0 {
		return nil
	}
	return r.endAll(ctx)
}

// endAll ends the VM with all that is in it, and what is still written by its processes is not waited for long.
func (r *room) endAll(ctx context.Context) error {
	r.mu.Lock()
	in := slices.Collect(maps.Keys(r.in))
	r.mu.Unlock()
	for _, c := range in {
		for _, p := range append(c.others(), c.init) {
			p.io.GiveUp(deadTime)
		}
	}
	return r.End(ctx)
}
