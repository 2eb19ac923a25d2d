package gcsserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/vmm"
)

// Dialer connects to a port of the host.
type Dialer func(ctx context.Context, port uint32) (net.Conn, error)

// Process is a process to start. The Runtime closes its streams.
type Process struct {
	Container string // empty: the VM itself
	// First selects the process of the container's spec, with these streams; Args to Terminal are ignored. The
	// container starts and ends with it. Instance is then that of its configuration, see gcs.ContainerConfig.
	First    bool
	Instance string
	Args     []string
	Env      []string
	Dir      string
	MakeDir  bool     // create Dir when it is missing
	User     string   // "", "name", "uid", "uid:gid" or "name:group"
	Groups   []uint32 // supplementary groups
	Terminal bool
	Width    uint16
	Height   uint16
	Streams  [3]net.Conn // stdin, stdout, stderr: connections to the host, or nil
}

// holder is a Runtime that a Modify of hcsschema.ResourceTemplate can hold as a template, until another one renews it.
// Await blocks while it is held; it is called before all other requests.
type holder interface {
	Await(ctx context.Context) error
}

// Modification is a modify request of a host, with its settings undecoded.
type Modification struct {
	RequestType  hcsschema.RequestType
	ResourceType hcsschema.ResourceType
	Settings     json.RawMessage
}

// Runtime carries out requests. Its methods are called concurrently. Errors match the sentinels of this package where
// one applies.
type Runtime interface {
	// Begin registers a change, until end is called. It is called before each Modify, in the order of requests: Mounts
	// waits for the changes that were registered before.
	Begin() (end func())
	Modify(ctx context.Context, m Modification, dial Dialer) error
	// Create registers a container. If the id exists the error matches ErrContainer.
	Create(ctx context.Context, id string, config gcs.ContainerConfig) error
	// Exec starts a process and returns its PID, by which hosts refer to it.
	Exec(ctx context.Context, p Process) (uint32, error)
	// Wait waits until a process has ended, and returns its exit code.
	Wait(ctx context.Context, container string, pid uint32) (int, error)
	Signal(ctx context.Context, container string, pid uint32, signal int) error
	Resize(ctx context.Context, container string, pid uint32, width, height uint16) error
	// Mounts returns the mounts, after the changes of any session that were registered before have ended. If one takes
	// too long the error matches ErrBusy.
	Mounts(ctx context.Context) ([]gcs.Mount, error)
	Processes(container string) ([]uint32, error)
	// Stats returns the resource usage of a running container.
	Stats(container string) (vmm.ContainerStats, error)
	// Pause stops all processes of a running container until Resume. Pause of a paused container is an error that
	// matches vmm.ErrPaused, Resume of one that is not an error that matches vmm.ErrNotPaused.
	Pause(ctx context.Context, container string) error
	Resume(ctx context.Context, container string) error
	// Update changes those limits of a running container that are set in r.
	Update(ctx context.Context, container string, r specs.LinuxResources) error
	// Ended waits until a container has ended, and returns how: a type of [gcs.Notification]. It returns an error if
	// the container is deleted before its First process was started.
	Ended(ctx context.Context, container string) (string, error)
	// Stop sends a signal to the first process of a container.
	Stop(ctx context.Context, container string, signal int) error
	// Delete kills the processes of a container and removes it. An unknown container is no error.
	Delete(ctx context.Context, container string) error
	// PowerOff ends the VM. It returns only if that fails.
	PowerOff(ctx context.Context) error
}

// Sentinel errors, which ResultOf maps to results of the protocol.
var (
	ErrBusy        = errors.New("in use")
	ErrNotFound    = errors.New("not found")
	ErrExists      = errors.New("exists already")
	ErrUnsupported = errors.New("not supported by this guest")
	ErrInvalid     = errors.New("invalid request")
	ErrNoContainer = errors.New("no such container")
	ErrContainer   = errors.New("container exists already")
	ErrStopped     = errors.New("the container has ended")
	ErrState       = errors.New("not possible in this state")
	ErrJSON        = errors.New("malformed document")
)

var results = []struct {
	err    error
	result gcs.HRESULT
}{
	{vmm.ErrProgramNotFound, gcs.ResultProgramNotFound}, {vmm.ErrNotExecutable, gcs.ResultNotExecutable},
	{vmm.ErrPaused, gcs.ResultPaused}, {vmm.ErrNotPaused, gcs.ResultNotPaused},
	{ErrBusy, gcs.ResultBusy}, {syscall.EBUSY, gcs.ResultBusy},
	{ErrNoContainer, gcs.ResultContainerNotFound}, {ErrContainer, gcs.ResultContainerExists},
	{ErrNotFound, gcs.ResultElementNotFound}, {ErrExists, gcs.ResultExists},
	{ErrUnsupported, gcs.ResultNotSupported}, {ErrInvalid, gcs.ResultInvalidArgument},
	{ErrStopped, gcs.ResultContainerStopped}, {ErrState, gcs.ResultInvalidState},
	{gcs.ErrArguments, gcs.ResultInvalidArgument},
	{ErrJSON, gcs.ResultInvalidJSON}, {context.DeadlineExceeded, gcs.ResultTimeout},
	{gcs.ErrTooLarge, gcs.ResultFail},
}

// ResultOf returns the protocol's result for an error, by default gcs.ResultFail.
func ResultOf(err error) gcs.HRESULT {
	for _, r := range results {
		if errors.Is(err, r.err) {
			return r.result
		}
	}
	return gcs.ResultFail
}

// Decode decodes JSON leniently, for hosts of all versions: names match regardless of case, unknown members are
// ignored, and empty input leaves v unchanged. Errors match ErrJSON.
func Decode(b []byte, v any) error {
	if len(b) == 0 {
		return nil
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", ErrJSON, err)
	}
	return nil
}
