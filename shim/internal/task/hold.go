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

	"github.com/stratavm/strata/internal/ocispec"
)

// Holder is a container that is none of containerd's, and holds the namespaces of a pod. Its methods may be called
// concurrently.
type Holder struct {
	s *Service
	c *container
}

// HolderArgs is the program of a holder, which waits. Its document asks for an init, which brings the program along.
var HolderArgs = []string{ocispec.InitPath, "-P"}

// PodFiles are what the root of a holder has for all containers of its pod, by the place that it has in each: regular
// files, and the folder of their shared memory.
var PodFiles = map[string]string{"/etc/hosts": "hosts", "/etc/hostname": "hostname", "/etc/resolv.conf": "resolv.conf",
	sharedMemory: "shm"}

// Hold begins a pod: it starts a VM, and in it the container of a bundle, which has a root with PodFiles, and a
// document that says of which pod it is. Containers of the pod find it by its id. When it fails nothing is left but
// perhaps what is mounted in the bundle.
func (s *Service) Hold(ctx context.Context, id, bundle string) (*Holder, error) {
	c, err := s.create(ctx, &taskapi.CreateTaskRequest{ID: id, Bundle: bundle}, true)
	if err != nil {
		return nil, err
	}
	h := &Holder{s, c}
	if err := c.start(ctx, c.init); err != nil {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		return nil, errors.Join(err, h.End(limited), h.Forget())
	}
	return h, nil
}

// PID is the number of the VM's process on the host.
func (h *Holder) PID() int { return h.c.machine.PID() }

// Done is closed when the pod has ended.
func (h *Holder) Done() <-chan struct{} { return h.c.init.done }

// Exit is how and when the pod has ended; ok is false while it runs.
func (h *Holder) Exit() (code int, at time.Time, ok bool) {
	s, code, at := h.c.init.status()
	return code, at, s == task.Status_STOPPED
}

// End ends the VM with all containers in it, for which containerd may still ask, and lets go what the holder has of the
// host. It may be called again.
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

// Forget takes a pod that has ended out of what the service knows.
func (h *Holder) Forget() error {
	if _, _, ended := h.Exit(); !ended {
		return fmt.Errorf("the pod %q runs: %w", h.c.id, errdefs.ErrFailedPrecondition)
	}
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	delete(h.s.containers, h.c.id)
	return nil
}

// addPodFiles gives a container of a pod that is held what all of them have, where its document does not say otherwise:
// shared memory goes with the IPC namespace.
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
