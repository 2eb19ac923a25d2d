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

// Process says what to run. The streams are connections to the host, or nil; the Runtime closes them.
type Process struct {
	Container string // empty: the VM itself
	// First stands for the process in the container's document, with these streams. With it the container
	// begins and ends. Instance is then that of the document, see gcs.ContainerConfig.
	First    bool
	Instance string
	Args     []string
	Env      []string
	Dir      string
	MakeDir  bool     // create Dir when it is missing
	User     string   // "", "name", "uid", "uid:gid" or "name:group"
	Groups   []uint32 // more groups than the user's own
	Terminal bool
	Width    uint16
	Height   uint16
	Streams  [3]net.Conn // stdin, stdout, stderr
}

// holder is a Runtime that can be held, by a Modify of hcsschema.ResourceTemplate, until it is renewed by another one.
// Await, which waits for that, is called before all else that hosts ask for.
type holder interface {
	Await(ctx context.Context) error
}

// Modification is a guest request as it came.
type Modification struct {
	RequestType  hcsschema.RequestType
	ResourceType hcsschema.ResourceType
	Settings     json.RawMessage
}

// Runtime does what requests ask for. Its methods are called concurrently. Errors match the sentinels
// of this package where one fits.
type Runtime interface {
	// Begin notes a change until end is called. It is called for each Modify, in the order in which hosts ask: Mounts
	// waits for those that were noted before.
	Begin() (end func())
	Modify(ctx context.Context, m Modification, dial Dialer) error
	// Create makes a container known. One of that id that is there already is an error matching ErrContainer.
	Create(ctx context.Context, id string, config gcs.ContainerConfig) error
	// Exec starts a process and returns the number by which it is known from then on.
	Exec(ctx context.Context, p Process) (uint32, error)
	// Wait returns the exit code of a process, also of one that has ended before.
	Wait(ctx context.Context, container string, pid uint32) (int, error)
	Signal(ctx context.Context, container string, pid uint32, signal int) error
	Resize(ctx context.Context, container string, pid uint32, width, height uint16) error
	// Mounts lists what is mounted, after each Modify that began before has ended, whoever asked for it.
	// When one takes too long the error matches ErrBusy.
	Mounts(ctx context.Context) ([]gcs.Mount, error)
	Processes(container string) ([]uint32, error)
	// Stats reports what a container uses that runs.
	Stats(container string) (vmm.ContainerStats, error)
	// Pause stops all processes of a container that runs, until Resume lets them go on. The errors match vmm.ErrPaused
	// and vmm.ErrNotPaused where it is so, or is not so, already.
	Pause(ctx context.Context, container string) error
	Resume(ctx context.Context, container string) error
	// Update changes the limits of a container that runs which are set in r.
	Update(ctx context.Context, container string, r specs.LinuxResources) error
	// Ended waits for the end of a container that begins with its First process, and returns how it came:
	// one of the types of [gcs.Notification]. One that is deleted before it has begun is an error.
	Ended(ctx context.Context, container string) (string, error)
	// Stop sends a signal to the first process of a container.
	Stop(ctx context.Context, container string, signal int) error
	// Delete kills what runs in a container and forgets it. An unknown container is no error.
	Delete(ctx context.Context, container string) error
	// PowerOff ends the VM. It returns only when that failed.
	PowerOff(ctx context.Context) error
}

// Sentinels that say to the host what kind of error it is.
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

// ResultOf returns the result that says to the host what kind of error it is.
func ResultOf(err error) gcs.HRESULT {
	for _, r := range results {
		if errors.Is(err, r.err) {
			return r.result
		}
	}
	return gcs.ResultFail
}

// Decode reads a document strictly enough to be useful and loosely enough for hosts of all ages:
// members are matched without regard to case, unknown ones are dropped.
func Decode(b []byte, v any) error {
	if len(b) == 0 {
		return nil
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", ErrJSON, err)
	}
	return nil
}
