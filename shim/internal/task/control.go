package task

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/stratavm/strata/vmm"
)

// Pause stops all processes of a container, until Resume.
func (s *Service) Pause(ctx context.Context, r *taskapi.PauseRequest) (*emptypb.Empty, error) {
	return Answer(empty, s.control(ctx, r.ID, func(ctx context.Context, c *container) error {
		err := c.machine.Pause(ctx, c.id)
		if err == nil || errors.Is(err, vmm.ErrPaused) {
			c.setPaused(true)
		}
		if err == nil {
			c.send(&eventsapi.TaskPaused{ContainerID: c.id})
		}
		return err
	}))
}

// Resume resumes a paused container.
func (s *Service) Resume(ctx context.Context, r *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	return Answer(empty, s.control(ctx, r.ID, func(ctx context.Context, c *container) error {
		err := c.machine.Resume(ctx, c.id)
		if err == nil || errors.Is(err, vmm.ErrNotPaused) {
			c.setPaused(false)
		}
		if err == nil {
			c.send(&eventsapi.TaskResumed{ContainerID: c.id})
		}
		return err
	}))
}

// Update changes the given resource limits of a container. A memory limit above the VM's memory is an error.
func (s *Service) Update(ctx context.Context, r *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	return Answer(empty, s.control(ctx, r.ID, func(ctx context.Context, c *container) error {
		limits, err := decode[specs.LinuxResources](bytes.NewReader(r.GetResources().GetValue()))
		if err != nil {
			return fmt.Errorf("the new limits: %w", err)
		}
		if m := limits.Memory; m != nil && m.Limit != nil && *m.Limit > int64(c.machine.memoryMiB)<<20 {
			return fmt.Errorf("a memory limit of %d MiB, and the VM of the container has %d MiB: give a lower limit, or "+
				"make the container anew with annotation %s: %w", *m.Limit>>20, c.machine.memoryMiB, memoryAnnotation,
				errdefs.ErrInvalidArgument)
		}
		return c.machine.Update(ctx, c.id, *limits)
	}))
}

// control calls do on a running container. Calls for the same container are serialized; ctx of do ends after
// answerTimeout.
func (s *Service) control(ctx context.Context, id string, do func(context.Context, *container) error) error {
	c, err := s.container(id)
	if err != nil {
		return err
	}
	limited, cancel := noAnswer(ctx, answerTimeout)
	defer cancel()
	select {
	case c.changing <- struct{}{}:
		defer func() { <-c.changing }()
	case <-limited.Done():
		return fmt.Errorf("container %q is being changed: %w", id, context.Cause(limited))
	}
	if s, _, _ := c.init.status(); s != task.Status_RUNNING {
		return fmt.Errorf("container %q does not run: %w", id, errdefs.ErrFailedPrecondition)
	}
	return do(limited, c)
}

// setPaused records whether the container is paused, for reportedStatus.
func (c *container) setPaused(paused bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = paused
}

// reportedStatus returns a process's status as containerd gets it: running processes of a paused container are paused.
func (c *container) reportedStatus(s task.Status) task.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s == task.Status_RUNNING && c.paused {
		return task.Status_PAUSED
	}
	return s
}
