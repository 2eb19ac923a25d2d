package vmm

import (
	"context"
	"errors"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Sentinels that the errors of a ContainerController match.
var (
	// ErrPaused: the container is paused. Nothing can be started in it.
	ErrPaused = errors.New("the container is paused")
	// ErrNotPaused: the container is not paused.
	ErrNotPaused = errors.New("the container is not paused")
)

// ContainerController is what machines and runners implement that can change a container that runs. One that does not
// run is an error; one without a control group, or a guest that cannot do it, is an error matching
// errors.ErrUnsupported.
type ContainerController interface {
	// PauseContainer stops all processes of a container until ResumeContainer. Meanwhile no other is started in it, and
	// signals wait, but that one which ends it at once: SIGKILL to its first process, or deleting it.
	// ContainerStats says that it is paused, also to others. One that is paused is an error matching ErrPaused; one
	// of which a process does not stop, waiting for a disk perhaps, goes on and is an error.
	PauseContainer(ctx context.Context, containerID string) error
	// ResumeContainer lets a container go on. One that is not paused is an error matching ErrNotPaused.
	ResumeContainer(ctx context.Context, containerID string) error
	// UpdateContainer changes the limits of a container that are set in r. Rules for devices are left as they are.
	// After an error some of them may have been changed.
	UpdateContainer(ctx context.Context, containerID string, r specs.LinuxResources) error
}
