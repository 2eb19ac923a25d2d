// Package task implements containerd's task API for containers in VMs.
package task

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stratavm/strata/shim/internal/events"
	"github.com/stratavm/strata/shim/internal/options"
	"github.com/stratavm/strata/shim/internal/pod"
	"github.com/stratavm/strata/shim/internal/stdio"
	"github.com/stratavm/strata/vmm"
)

// Service implements the task API. Its methods may be called concurrently.
type Service struct {
	Config

	mu         sync.Mutex
	containers map[string]*container // by id; nil while being created
	down       bool                  // Shutdown was called since the last Create began
}

// Config configures a Service.
type Config struct {
	Namespace string
	Events    *events.Queue
	StartVM   func(context.Context, pod.Options) (Machine, error)
	End       func() // ends the shim
	Logger    *slog.Logger
	Level     *slog.LevelVar // of Logger; nil: it stays
}

// New returns a service without containers.
func New(c Config) *Service { return &Service{Config: c, containers: map[string]*container{}} }

var _ taskapi.TTRPCTaskService = &Service{}

// RegisterTTRPC registers the service with a server.
func (s *Service) RegisterTTRPC(server *ttrpc.Server) error {
	taskapi.RegisterTTRPCTaskService(server, s)
	return nil
}

var empty = &emptypb.Empty{}

// Answer returns v, or err as a gRPC status with the code that containerd expects.
func Answer[T any](v T, err error) (T, error) {
	if err == nil {
		return v, nil
	}
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		err = fmt.Errorf("%w: %w", errdefs.ErrNotImplemented, err)
	case errors.Is(err, vmm.ErrPaused), errors.Is(err, vmm.ErrNotPaused):
		err = fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
	case errors.Is(err, vmm.ErrInvalid):
		err = fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	var none T
	return none, errgrpc.ToGRPC(err)
}

// unsupported returns the error of an API call that is not supported.
func unsupported(call string) (*emptypb.Empty, error) {
	return Answer(empty, fmt.Errorf("%s is not supported by io.containerd.strata.v1: %w", call, errdefs.ErrNotImplemented))
}

func (s *Service) container(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
}

func (s *Service) process(id, execID string) (*container, *process, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, nil, err
	}
	p, err := c.process(execID)
	return c, p, err
}

// Create starts the VM, unless the container's pod has one, and mounts the container's root in it.
func (s *Service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	c, err := s.create(ctx, r, false)
	out := &taskapi.CreateTaskResponse{}
	if err == nil {
		out.Pid = uint32(c.machine.PID())
	}
	if errdefs.IsNotImplemented(err) || errors.Is(err, errors.ErrUnsupported) {
		// From "not implemented" containerd concludes that the shim speaks only an older protocol.
		err = errgrpc.ToGRPCf(errdefs.ErrInvalidArgument, "%v", err)
	}
	return Answer(out, err)
}

// create creates a container. With holds it is a pod's Holder, of which containerd gets no events.
func (s *Service) create(ctx context.Context, r *taskapi.CreateTaskRequest, holds bool) (*container, error) {
	switch {
	case r.Checkpoint != "" || r.ParentCheckpoint != "":
		return nil, fmt.Errorf("a task from a checkpoint: %w", errdefs.ErrNotImplemented)
	case !filepath.IsAbs(r.Bundle):
		return nil, fmt.Errorf("bundle %q: give an absolute path: %w", r.Bundle, errdefs.ErrInvalidArgument)
	}
	s.mu.Lock()
	if _, there := s.containers[r.ID]; there {
		s.mu.Unlock()
		return nil, fmt.Errorf("container %q: %w", r.ID, errdefs.ErrAlreadyExists)
	}
	s.containers[r.ID], s.down = nil, false
	s.mu.Unlock()
	c, err := s.newContainer(ctx, r, holds)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		if delete(s.containers, r.ID); s.down && len(s.containers) == 0 {
			s.End()
		}
		return nil, err
	}
	s.containers[r.ID] = c
	c.send(&eventsapi.TaskCreate{ContainerID: r.ID, Bundle: r.Bundle, Rootfs: r.Rootfs, Pid: uint32(c.machine.PID()),
		IO: &eventsapi.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal}})
	return c, nil
}

// options returns the runtime options of a container that gets a VM of its own, and logs as they say.
func (s *Service) options(r *taskapi.CreateTaskRequest) (options.Options, error) {
	o, err := options.Read(r.GetOptions())
	if err == nil && o.Debug && s.Level != nil {
		s.Level.Set(slog.LevelDebug)
	}
	return o, err
}

// Start starts the first process of a container, or an exec process.
func (s *Service) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	c, p, err := s.process(r.ID, r.ExecID)
	if err == nil {
		err = c.start(ctx, p)
	}
	if err != nil {
		return Answer[*taskapi.StartResponse](nil, err)
	}
	return &taskapi.StartResponse{Pid: uint32(c.machine.PID())}, nil
}

// Delete removes a process that does not run. Deleting the first process removes the container, and with the last
// container the VM.
func (s *Service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	return Answer(s.delete(ctx, r))
}

func (s *Service) delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	c, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	release, err := p.hold(ctx) // prevents a concurrent start or delete
	if err != nil {
		return nil, err
	}
	defer release()
	if _, now, err := s.process(r.ID, r.ExecID); err != nil || now != p {
		return nil, errors.Join(fmt.Errorf("process %q of container %q: %w", r.ExecID, r.ID, errdefs.ErrNotFound), err)
	}
	status, _, _ := p.status()
	switch status {
	case task.Status_RUNNING:
		return nil, fmt.Errorf("the process runs: %w", errdefs.ErrFailedPrecondition)
	case task.Status_CREATED: // no start event was sent, so no exit event either
		p.end(killed)
		p.finish()
	case task.Status_STOPPED: // wait until its exit event is sent
		select {
		case <-p.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	_, code, exited := p.status()
	pid := uint32(c.machine.PID())
	answer := &taskapi.DeleteResponse{Pid: pid, ExitStatus: uint32(code), ExitedAt: timestamppb.New(exited)}
	p.io.Close()
	if p != c.init {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.execs, p.id)
		return answer, nil
	}
	if err := c.release(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, c.id)
	c.send(&eventsapi.TaskDelete{ContainerID: c.id, Pid: pid, ExitStatus: uint32(code),
		ExitedAt: timestamppb.New(exited)})
	return answer, nil
}

// Exec adds an exec process to a container. Start starts it.
func (s *Service) Exec(_ context.Context, r *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	return Answer(empty, s.exec(r))
}

func (s *Service) exec(r *taskapi.ExecProcessRequest) error {
	c, err := s.container(r.ID)
	if err != nil {
		return err
	}
	if r.ExecID == "" {
		return fmt.Errorf("the id of the process is empty: %w", errdefs.ErrInvalidArgument)
	}
	doc, err := decode[specs.Process](bytes.NewReader(r.GetSpec().GetValue()))
	if err != nil {
		return fmt.Errorf("the process's document: %w", err)
	}
	doc.Terminal = r.Terminal
	if err := checkExec(doc, c.doc.spec.Process); err != nil {
		return err
	}
	spec := processSpec(doc)
	spec.ContainerID, spec.Root, spec.MakeDir = c.id, c.mounted.Root, false
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[r.ExecID] != nil {
		return fmt.Errorf("process %q of container %q: %w", r.ExecID, c.id, errdefs.ErrAlreadyExists)
	}
	p, err := newProcess(r.ExecID, stdio.Names{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal,
		Namespace: s.Namespace, ID: r.ExecID}, spec)
	if err != nil {
		return err
	}
	c.execs[r.ExecID] = p
	c.send(&eventsapi.TaskExecAdded{ContainerID: c.id, ExecID: r.ExecID})
	return nil
}

// State returns the state of a process without asking the guest.
func (s *Service) State(_ context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	c, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return Answer[*taskapi.StateResponse](nil, err)
	}
	status, code, exited := p.status()
	out := &taskapi.StateResponse{ID: c.id, Bundle: c.bundle, Pid: uint32(c.machine.PID()),
		Status: c.reportedStatus(status), Stdin: p.names.Stdin, Stdout: p.names.Stdout, Stderr: p.names.Stderr,
		Terminal:   p.names.Terminal,
		ExitStatus: uint32(code), ExecID: p.id}
	if status == task.Status_STOPPED {
		out.ExitedAt = timestamppb.New(exited)
	}
	return out, nil
}

// Wait waits until a process has ended and its output is written.
func (s *Service) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	_, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return Answer[*taskapi.WaitResponse](nil, err)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return Answer[*taskapi.WaitResponse](nil, context.Cause(ctx))
	}
	_, code, exited := p.status()
	return &taskapi.WaitResponse{ExitStatus: uint32(code), ExitedAt: timestamppb.New(exited)}, nil
}

// Kill sends a signal to a process, or to all that containerd started in the container.
func (s *Service) Kill(ctx context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	c, p, err := s.process(r.ID, r.ExecID)
	switch {
	case err != nil:
	case r.All:
		err = c.killAll(ctx, r.Signal)
	default:
		err = c.kill(ctx, p, r.Signal)
	}
	return Answer(empty, err)
}

// ResizePty sets the size of a process's terminal, in characters.
func (s *Service) ResizePty(ctx context.Context, r *taskapi.ResizePtyRequest) (*emptypb.Empty, error) {
	_, p, err := s.process(r.ID, r.ExecID)
	if err == nil {
		err = p.resize(ctx, r.Width, r.Height)
	}
	return Answer(empty, err)
}

// CloseIO ends a process's standard input: it reads what was written so far, then EOF.
func (s *Service) CloseIO(_ context.Context, r *taskapi.CloseIORequest) (*emptypb.Empty, error) {
	_, p, err := s.process(r.ID, r.ExecID)
	if err == nil && r.Stdin {
		p.io.EndInput()
	}
	return Answer(empty, err)
}

// Connect returns the process IDs of the shim and the VM without asking the guest.
func (s *Service) Connect(_ context.Context, r *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	out := &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid())}
	if c, err := s.container(r.ID); err == nil {
		out.TaskPid = uint32(c.machine.PID())
	}
	return out, nil
}

// Shutdown ends the shim if it has no containers. If one is being created, the shim ends when that fails.
func (s *Service) Shutdown(context.Context, *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = true
	if len(s.containers) == 0 {
		s.End()
	}
	return empty, nil
}

// Close releases all containers and ends their VMs. It is called when the shim ends.
func (s *Service) Close(ctx context.Context) (err error) {
	s.mu.Lock()
	containers := slices.Collect(maps.Values(s.containers))
	s.mu.Unlock()
	for _, c := range containers {
		if c != nil {
			err = errors.Join(err, c.release(ctx))
		}
	}
	for _, c := range containers {
		if c != nil {
			err = errors.Join(err, c.machine.close(ctx))
		}
	}
	return err
}

// Checkpoint is not supported.
func (s *Service) Checkpoint(context.Context, *taskapi.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return unsupported("checkpoint")
}
