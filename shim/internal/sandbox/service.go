// Package sandbox implements containerd's sandbox API: pods that containerd starts without a pause container.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stratavm/strata/shim/internal/cgroup"
	"github.com/stratavm/strata/shim/internal/options"
	"github.com/stratavm/strata/shim/internal/rootfs"
	"github.com/stratavm/strata/shim/internal/task"
)

// States of a pod in CRI.
const (
	ready    = "SANDBOX_READY"
	notReady = "SANDBOX_NOTREADY"
)

// Service implements the sandbox API for the one pod of a shim. Its methods may be called concurrently.
type Service struct {
	tasks *task.Service
	end   func() // ends the shim

	changing chan struct{} // semaphore of capacity 1, held while the pod is created, started, stopped or shut down

	mu      sync.Mutex
	id      string // empty until created
	bundle  string
	plan    *plan
	holder  *task.Holder  // nil until started
	started time.Time     // zero until started
	stopped bool          // StopSandbox succeeded
	settled chan struct{} // closed when the pod is started, or stopped without having been started
}

// New returns a service without a pod. tasks has the pod's containers; end ends the shim.
func New(tasks *task.Service, end func()) *Service {
	return &Service{tasks: tasks, end: end, changing: make(chan struct{}, 1), settled: make(chan struct{})}
}

var _ sandboxapi.TTRPCSandboxService = &Service{}

// RegisterTTRPC registers the service with a server.
func (s *Service) RegisterTTRPC(server *ttrpc.Server) error {
	sandboxapi.RegisterTTRPCSandboxService(server, s)
	return nil
}

// hold blocks until no other call changes the pod, and excludes others until release is called.
func (s *Service) hold(ctx context.Context) (release func(), err error) {
	return task.Acquire(ctx, s.changing, "the pod is being changed")
}

// state is a snapshot of a Service's fields.
type state struct {
	bundle  string
	plan    *plan
	holder  *task.Holder
	started time.Time
	stopped bool
}

// find returns the state of the pod; another id than that of this shim's pod is an error.
func (s *Service) find(id string) (state, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.id == "" || s.id != id {
		return state{}, fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound)
	}
	return state{s.bundle, s.plan, s.holder, s.started, s.stopped}, nil
}

// CreateSandbox checks and records a pod. It starts nothing.
func (s *Service) CreateSandbox(ctx context.Context, r *sandboxapi.CreateSandboxRequest,
) (*sandboxapi.CreateSandboxResponse, error) {
	return task.Answer(&sandboxapi.CreateSandboxResponse{}, s.create(ctx, r))
}

func (s *Service) create(ctx context.Context, r *sandboxapi.CreateSandboxRequest) error {
	release, err := s.hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	switch {
	case s.id != "":
		return fmt.Errorf("sandbox %q: this shim has sandbox %q: %w", r.GetSandboxID(), s.id, errdefs.ErrAlreadyExists)
	case r.GetSandboxID() == "":
		return fmt.Errorf("the id of the sandbox is empty: %w", errdefs.ErrInvalidArgument)
	case !filepath.IsAbs(r.GetBundlePath()):
		return fmt.Errorf("bundle %q: give an absolute path: %w", r.GetBundlePath(), errdefs.ErrInvalidArgument)
	}
	p, err := newPlan(r)
	if err != nil {
		return err
	}
	if p.options, err = options.Kept(r.GetBundlePath()); err != nil {
		return err
	}
	if _, err := options.Read(p.options); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id, s.bundle, s.plan = r.GetSandboxID(), r.GetBundlePath(), p
	return nil
}

// StartSandbox starts the VM, and in it the container that holds the pod's namespaces.
func (s *Service) StartSandbox(ctx context.Context, r *sandboxapi.StartSandboxRequest,
) (*sandboxapi.StartSandboxResponse, error) {
	return task.Answer(s.start(ctx, r.GetSandboxID()))
}

func (s *Service) start(ctx context.Context, id string) (*sandboxapi.StartSandboxResponse, error) {
	release, err := s.hold(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	st, err := s.find(id)
	switch {
	case errdefs.IsNotFound(err):
		return nil, fmt.Errorf("sandbox %q was not created: %w", id, errdefs.ErrFailedPrecondition)
	case err != nil:
		return nil, err
	case st.holder != nil || st.stopped:
		return nil, fmt.Errorf("sandbox %q was started or stopped before: %w", id, errdefs.ErrFailedPrecondition)
	}
	if err := st.plan.write(st.bundle); err != nil {
		return nil, err
	}
	h, err := s.tasks.Hold(ctx, id, st.bundle, st.plan.options)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start sandbox %q: %w", id, err), rootfs.Unmount(st.bundle))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holder, s.started = h, time.Now()
	close(s.settled)
	return &sandboxapi.StartSandboxResponse{Pid: uint32(h.PID()), CreatedAt: timestamppb.New(s.started)}, nil
}

// Platform returns the OS and architecture of the pod's containers.
func (s *Service) Platform(_ context.Context, r *sandboxapi.PlatformRequest) (*sandboxapi.PlatformResponse, error) {
	_, err := s.find(r.GetSandboxID())
	return task.Answer(&sandboxapi.PlatformResponse{Platform: &types.Platform{OS: "linux", Architecture: runtime.GOARCH}}, err)
}

// StopSandbox ends the VM with all containers in it. It is idempotent.
func (s *Service) StopSandbox(ctx context.Context, r *sandboxapi.StopSandboxRequest,
) (*sandboxapi.StopSandboxResponse, error) {
	return task.Answer(&sandboxapi.StopSandboxResponse{}, s.stop(ctx, r.GetSandboxID()))
}

func (s *Service) stop(ctx context.Context, id string) error {
	release, err := s.hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	st, err := s.find(id)
	if err != nil {
		return err
	}
	if st.holder != nil {
		if err := st.holder.End(ctx); err != nil {
			return fmt.Errorf("stop sandbox %q: %w", id, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped && s.holder == nil {
		close(s.settled)
	}
	s.stopped = true
	return nil
}

// WaitSandbox waits until the VM has ended. It returns at once if the pod was stopped without having been started.
func (s *Service) WaitSandbox(ctx context.Context, r *sandboxapi.WaitSandboxRequest,
) (*sandboxapi.WaitSandboxResponse, error) {
	return task.Answer(s.wait(ctx, r.GetSandboxID()))
}

func (s *Service) wait(ctx context.Context, id string) (*sandboxapi.WaitSandboxResponse, error) {
	if _, err := s.find(id); err != nil {
		return nil, err
	}
	select {
	case <-s.settled:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	st, err := s.find(id)
	if err != nil || st.holder == nil {
		return &sandboxapi.WaitSandboxResponse{}, err
	}
	select {
	case <-st.holder.Done():
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	code, at, _ := st.holder.Exit()
	return &sandboxapi.WaitSandboxResponse{ExitStatus: uint32(code), ExitedAt: timestamppb.New(at)}, nil
}

// SandboxStatus returns the state of the pod without asking the guest.
func (s *Service) SandboxStatus(_ context.Context, r *sandboxapi.SandboxStatusRequest,
) (*sandboxapi.SandboxStatusResponse, error) {
	st, err := s.find(r.GetSandboxID())
	out := &sandboxapi.SandboxStatusResponse{SandboxID: r.GetSandboxID(), State: notReady}
	if st.holder != nil {
		out.Pid, out.CreatedAt = uint32(st.holder.PID()), timestamppb.New(st.started)
		if _, at, ended := st.holder.Exit(); ended {
			out.ExitedAt = timestamppb.New(at)
		} else {
			out.State = ready
		}
	}
	return task.Answer(out, err)
}

// PingSandbox returns an error unless the id is that of this shim's pod.
func (s *Service) PingSandbox(_ context.Context, r *sandboxapi.PingRequest) (*sandboxapi.PingResponse, error) {
	_, err := s.find(r.GetSandboxID())
	return task.Answer(&sandboxapi.PingResponse{}, err)
}

// ShutdownSandbox stops the pod and ends the shim, also if no pod was created. If stopping fails, it is tried again
// when the shim ends.
func (s *Service) ShutdownSandbox(ctx context.Context, r *sandboxapi.ShutdownSandboxRequest,
) (*sandboxapi.ShutdownSandboxResponse, error) {
	err := s.stop(ctx, r.GetSandboxID())
	if errdefs.IsNotFound(err) {
		s.mu.Lock()
		none := s.id == ""
		s.mu.Unlock()
		if !none {
			return task.Answer[*sandboxapi.ShutdownSandboxResponse](nil, err)
		}
		err = nil
	}
	s.end() // it releases the remaining containers
	return task.Answer(&sandboxapi.ShutdownSandboxResponse{}, err)
}

// SandboxMetrics returns the metrics of the pod's control group on the host.
func (s *Service) SandboxMetrics(_ context.Context, r *sandboxapi.SandboxMetricsRequest,
) (*sandboxapi.SandboxMetricsResponse, error) {
	return task.Answer(s.metrics(r.GetSandboxID()))
}

func (s *Service) metrics(id string) (*sandboxapi.SandboxMetricsResponse, error) {
	st, err := s.find(id)
	if err != nil {
		return nil, err
	}
	group := st.plan.doc.Linux.CgroupsPath
	if group == "" {
		return nil, fmt.Errorf("metrics of sandbox %q: it names no control group: %w", id, errdefs.ErrNotImplemented)
	}
	m, err := cgroup.Stat(group)
	if errors.Is(err, cgroup.ErrSystemd) {
		err = fmt.Errorf("%w: %w", errdefs.ErrNotImplemented, err)
	}
	if err != nil {
		return nil, fmt.Errorf("metrics of sandbox %q: %w", id, err)
	}
	data, err := typeurl.MarshalAnyToProto(m)
	if err != nil {
		return nil, err
	}
	return &sandboxapi.SandboxMetricsResponse{Metrics: &types.Metric{ID: id, Timestamp: timestamppb.Now(), Data: data}}, nil
}

// UpdateSandbox is not supported: the size of a VM is fixed.
func (s *Service) UpdateSandbox(context.Context, *sandboxapi.UpdateSandboxRequest,
) (*sandboxapi.UpdateSandboxResponse, error) {
	return task.Answer(&sandboxapi.UpdateSandboxResponse{},
		fmt.Errorf("a change of a sandbox: %w", errdefs.ErrNotImplemented))
}
