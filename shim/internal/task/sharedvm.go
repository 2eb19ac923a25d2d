package task

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/stratavm/strata/shim/internal/cgroup"
	"github.com/stratavm/strata/shim/internal/options"
	"github.com/stratavm/strata/shim/internal/pod"
)

// sharedVM is a VM and the containers that run in it. Removing the last container ends the VM.
type sharedVM struct {
	Machine
	memoryMiB int
	cgroup    string // the host control group this program created for it, or empty
	files     string // guest path of the pod's PodFiles, see Hold; empty: containerd mounts them into each container

	removing sync.Mutex // serializes remove

	mu     sync.Mutex
	in     map[*container]bool
	closed bool // the VM is ending or has ended: add fails
}

// vmFor returns the VM of the container's pod, or starts one if the container is not a member of a pod.
func (s *Service) vmFor(ctx context.Context, c *container, o options.Options) (*sharedVM, error) {
	if id := c.doc.sandbox; id != "" {
		of, err := s.container(id)
		if err != nil {
			return nil, fmt.Errorf("the sandbox of the pod: %w", err)
		}
		if err := writeCgroup(c.bundle, of.machine.cgroup); err != nil { // its removal may end the VM
			return nil, err
		}
		return of.machine, of.machine.add(c)
	}
	dir, err := pod.Dir(s.Namespace, c.id)
	if err != nil {
		return nil, err
	}
	made := ""
	if cgroup.Makes(c.doc.cgroup) { // an existing group is not ours to remove
		made = c.doc.cgroup
	}
	if err := writeCgroup(c.bundle, made); err != nil {
		return nil, err
	}
	sandbox, _ := pod.Sandbox(c.doc.spec.Annotations) // outside a pod, others may listen in the network namespace
	m, err := s.StartVM(ctx, pod.Options{Dir: dir, MemoryMiB: c.doc.memoryMiB, CPUs: c.doc.cpus,
		Namespace: c.doc.namespace, Cgroup: c.doc.cgroup, Forward: sandbox != "", Runtime: o, Logger: s.Logger})
	if err != nil {
		return nil, err
	}
	return &sharedVM{Machine: m, memoryMiB: c.doc.memoryMiB, cgroup: made, in: map[*container]bool{c: true}}, nil
}

// add adds a container to the running VM. It fails if the VM is ending or is smaller than the container's memory limit.
func (r *sharedVM) add(c *container) error {
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

// shared reports whether the VM has more than one container.
func (r *sharedVM) shared() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.in) > 1
}

// remove unmounts a container's root and removes the container; with the last one it ends the VM. It is idempotent and
// may be retried after an error.
func (r *sharedVM) remove(ctx context.Context, c *container) error {
	r.removing.Lock()
	defer r.removing.Unlock()
	r.mu.Lock()
	in, last := r.in[c], len(r.in) == 1
	r.closed = r.closed || in && last
	r.mu.Unlock()
	if !in {
		return nil
	}
	if c.mounted != nil { // unmounting flushes what was written
		limited, cancel := context.WithTimeout(ctx, unmountLimit(ctx))
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

// close ends the VM if a container is left in it.
func (r *sharedVM) close(ctx context.Context) error {
	r.mu.Lock()
	left := len(r.in)
	r.mu.Unlock()
	if left == 0 {
		return nil
	}
	return r.endAll(ctx)
}

// endAll ends the VM with all its containers. Output of their processes that nobody reads is dropped after
// killedTimeout.
func (r *sharedVM) endAll(ctx context.Context) error {
	r.mu.Lock()
	in := slices.Collect(maps.Keys(r.in))
	r.mu.Unlock()
	for _, c := range in {
		for _, p := range append(c.others(), c.init) {
			p.io.GiveUp(killedTimeout)
		}
	}
	return r.End(ctx)
}
