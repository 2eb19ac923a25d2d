package task

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/stratavm/strata/internal/ocispec"
)

// Holder is the container that keeps a pod's VM and namespaces alive, like the pause container of other runtimes.
// containerd does not know it. Its methods may be called concurrently.
type Holder struct {
	s *Service
	c *container
}

// HolderArgs is the command line of a holder: the init program, which only waits. The holder's spec must ask for an
// init, which puts the program there.
var HolderArgs = []string{ocispec.InitPath, "-P"}

// PodFiles maps paths in every container of a pod to the names of their sources in the holder's root: regular files,
// and the directory of the pod's shared memory.
var PodFiles = map[string]string{"/etc/hosts": "hosts", "/etc/hostname": "hostname", "/etc/resolv.conf": "resolv.conf",
	sharedMemory: "shm"}

// Hold starts a pod: a VM, and in it the holder from a bundle, whose root must contain PodFiles and whose config.json
// must name the pod. options are the runtime's options. Containers of the pod refer to the holder by id. On error
// everything is undone except mounts in the bundle, which the caller must unmount.
func (s *Service) Hold(ctx context.Context, id, bundle string, options *anypb.Any) (*Holder, error) {
	c, err := s.create(ctx, &taskapi.CreateTaskRequest{ID: id, Bundle: bundle, Options: options}, true)
	if err != nil {
		return nil, err
	}
	h := &Holder{s, c}
	if err := c.start(ctx, c.init); err != nil {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		return nil, errors.Join(err, h.End(limited), h.Forget())
	}
	return h, nil
}

// PID returns the process ID of the VM's process on the host.
func (h *Holder) PID() int { return h.c.machine.PID() }

// Done returns a channel that is closed when the pod has ended.
func (h *Holder) Done() <-chan struct{} { return h.c.init.done }

// Exit returns the holder's exit code and when it exited; ok is false while it runs.
func (h *Holder) Exit() (code int, at time.Time, ok bool) {
	s, code, at := h.c.init.status()
	return code, at, s == task.Status_STOPPED
}

// End ends the VM with all its containers and releases what the holder has on the host. The containers stay known until
// containerd deletes them. It is idempotent.
func (h *Holder) End(ctx context.Context) error {
	r := h.c.machine
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	if err := r.endAll(ctx); err != nil {
		return err
	}
	release, err := h.c.init.hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	if s, _, _ := h.c.init.status(); s == task.Status_CREATED {
		h.c.init.end(killed)
		h.c.init.finish()
	}
	select {
	case <-h.c.init.done:
	case <-ctx.Done():
		return fmt.Errorf("the end of the pod: %w", context.Cause(ctx))
	}
	return h.c.release(ctx)
}

// Forget removes a pod that has ended from the service.
func (h *Holder) Forget() error {
	if _, _, ended := h.Exit(); !ended {
		return fmt.Errorf("the pod %q runs: %w", h.c.id, errdefs.ErrFailedPrecondition)
	}
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	delete(h.s.containers, h.c.id)
	return nil
}

// addPodFiles returns the spec with bind mounts of PodFiles, if the pod has a holder. Mounts of the spec at the same
// places win, except a tmpfs at /dev/shm in a container that shares the pod's IPC namespace.
func (c *container) addPodFiles(doc *specs.Spec) *specs.Spec {
	if c.machine.files == "" || c.holds {
		return doc
	}
	out := *doc
	out.Mounts = slices.Clone(doc.Mounts)
	for _, place := range slices.Sorted(maps.Keys(PodFiles)) {
		m := specs.Mount{Destination: place, Type: "bind", Source: path.Join(c.machine.files, PodFiles[place]),
			Options: []string{"rbind", "rprivate", "nosuid", "nodev", "noexec"}}
		i := slices.IndexFunc(out.Mounts, func(m specs.Mount) bool { return ocispec.SamePlace(m.Destination, place) })
		switch {
		case place == sharedMemory:
			if i >= 0 && out.Mounts[i].Type == "tmpfs" && sharesIPC(doc) {
				out.Mounts[i] = m
			}
		case i < 0:
			if doc.Root != nil && doc.Root.Readonly {
				m.Options = append(m.Options, "ro")
			}
			out.Mounts = append(out.Mounts, m)
		}
	}
	return &out
}

func sharesIPC(doc *specs.Spec) bool {
	return doc.Linux != nil && slices.ContainsFunc(doc.Linux.Namespaces, func(n specs.LinuxNamespace) bool {
		return n.Type == specs.IPCNamespace && n.Path != ""
	})
}
