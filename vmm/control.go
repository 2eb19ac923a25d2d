package vmm

import (
	"context"
	"errors"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Errors of a ContainerController match these sentinels.
var (
	// ErrPaused: the container is paused. No process can be started in it.
	ErrPaused = errors.New("the container is paused")
	// ErrNotPaused: the container is not paused.
	ErrNotPaused = errors.New("the container is not paused")
)

// ContainerController is implemented by machines and runners that can pause and update a running container. It is an
// error if the container is not running; if it has no control group, or the guest does not support this, the error
// matches errors.ErrUnsupported.
type ContainerController interface {
	// PauseContainer stops all processes of a container until ResumeContainer. Meanwhile no process can be started in
	// it, and signals are delivered only when it is resumed, except for those that end the container at once: SIGKILL
	// to its first process, or deleting it. ContainerStats reports the pause. If the container is already paused, the
	// error matches ErrPaused. If a process does not stop, for example because it is blocked on a disk, the container
	// is resumed and the call fails.
	PauseContainer(ctx context.Context, containerID string) error
	// ResumeContainer resumes a container. If it is not paused, the error matches ErrNotPaused.
	ResumeContainer(ctx context.Context, containerID string) error
	// UpdateContainer changes the limits of a container that are set in r. Device rules are ignored. After an error
	// some limits may have been changed.
	UpdateContainer(ctx context.Context, containerID string, r specs.LinuxResources) error
}
