package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/vmm"
)

// ExecSession runs programs in a machine that another process may control at the same time.
type ExecSession struct {
	dir       string
	memoryMiB int
	g         guest
	lock      *portLock // nil over vsock
	room      sessionWatch
}

// OpenExec connects to the guest of the machine in dir. Errors match vmm.ErrNoVM, vmm.ErrGone, vmm.ErrHostFull while
// the machine waits for room on the host's file system, and ErrPortsTaken if the guest is reached by serial ports and
// none becomes free within ten seconds.
func OpenExec(ctx context.Context, dir string, log *slog.Logger) (*ExecSession, error) {
	return openExec(ctx, dir, log, connectGCS)
}

func openExec(ctx context.Context, dir string, log *slog.Logger, connect connectFunc) (*ExecSession, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	desc, err := readDescription(dir)
	if err != nil {
		return nil, err
	}
	proc, err := findProcess(dir)
	if err != nil {
		if errors.Is(err, errNoProcess) {
			err = fmt.Errorf("%w: %w", vmm.ErrGone, err)
		}
		return nil, fmt.Errorf("qemu: open %s: %w", dir, err)
	}
	defer proc.close()
	if err := awaitSaving(ctx, dir, Config{Logger: log, connect: connect}); err != nil {
		return nil, err
	}
	if err := checkNotWaiting(ctx, dir); err != nil {
		return nil, fmt.Errorf("qemu: machine %s: %w", desc.ID, err)
	}
	s := &ExecSession{dir: dir, memoryMiB: desc.MemoryMiB}
	port := 0
	if desc.Transport != TransportVSock {
		if s.lock, port, err = waitPort(ctx, dir, desc.ExecPorts); err != nil {
			return nil, err
		}
	}
	// If the machine dies in the meantime, stop waiting for its agent.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-proc.exited:
			cancel(fmt.Errorf("machine %s: %w", desc.ID, vmm.ErrGone))
		case <-ctx.Done():
		}
	}()
	p := &guestPort{connect: desc.connecting(connect), log: log}
	if s.g, err = p.dial(ctx, desc.reach(dir, port)); err != nil {
		s.unlock()
		select { // a connection that broke is often the first sign of the end
		case <-proc.exited:
			return nil, fmt.Errorf("qemu: machine %s: %w (%w)", desc.ID, vmm.ErrGone, err)
		case <-ctx.Done():
		case <-time.After(settleTime):
		}
		return nil, fmt.Errorf("qemu: machine %s: %w", desc.ID, noGuest(err))
	}
	s.room.start(dir, log.With("vm", desc.ID))
	return s, nil
}

// portPatience is how long OpenExec waits for a free port.
const portPatience = 10 * time.Second

// waitPort takes a port of the guest as soon as one is free. After portPatience, or when ctx ends, the error matches
// ErrPortsTaken.
func waitPort(ctx context.Context, dir string, ports int) (*portLock, int, error) {
	ctx, cancel := context.WithTimeout(ctx, portPatience)
	defer cancel()
	for {
		lock, port, err := freePort(dir, ports)
		if !errors.Is(err, ErrPortsTaken) {
			return lock, port, err
		}
		select {
		case <-ctx.Done():
			return nil, 0, err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func freePort(dir string, ports int) (*portLock, int, error) {
	for i := 1; i <= ports; i++ {
		lock, err := tryLockPort(dir, i)
		if err == nil {
			return lock, i, nil
		}
		if !errors.Is(err, ErrPortsTaken) {
			return nil, 0, fmt.Errorf("qemu: %w", err)
		}
	}
	return nil, 0, fmt.Errorf("qemu: %w: %d programs run already; wait for one to end", ErrPortsTaken, ports)
}

// Exec starts a program. It is killed when the session ends.
func (s *ExecSession) Exec(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	return s.g.Exec(ctx, spec)
}

// FindProcess implements vmm.Runner.
func (s *ExecSession) FindProcess(ctx context.Context, containerID string, pid uint32) (vmm.Process, error) {
	return s.g.FindProcess(ctx, containerID, pid)
}

// ContainerStats implements vmm.ContainerStatist.
func (s *ExecSession) ContainerStats(ctx context.Context, containerID string) (vmm.ContainerStats, error) {
	g, ok := s.g.(vmm.ContainerStatist)
	if !ok {
		return vmm.ContainerStats{}, fmt.Errorf("statistics of containers: %w", errors.ErrUnsupported)
	}
	return g.ContainerStats(ctx, containerID)
}

// PauseContainer implements vmm.ContainerController.
func (s *ExecSession) PauseContainer(ctx context.Context, containerID string) error {
	g, err := s.controller()
	if err != nil {
		return err
	}
	return g.PauseContainer(ctx, containerID)
}

// ResumeContainer implements vmm.ContainerController.
func (s *ExecSession) ResumeContainer(ctx context.Context, containerID string) error {
	g, err := s.controller()
	if err != nil {
		return err
	}
	return g.ResumeContainer(ctx, containerID)
}

// UpdateContainer implements vmm.ContainerController. Limits beyond the machine's capacity are an error.
func (s *ExecSession) UpdateContainer(ctx context.Context, containerID string, r specs.LinuxResources) error {
	g, err := s.controller()
	if err != nil {
		return err
	}
	if m := r.Memory; m != nil && m.Limit != nil && *m.Limit > int64(s.memoryMiB)<<20 {
		return fmt.Errorf("update container %q: a memory limit of %d MiB, and its VM has %d MiB: give it a lower limit",
			containerID, *m.Limit>>20, s.memoryMiB)
	}
	return g.UpdateContainer(ctx, containerID, r)
}

func (s *ExecSession) controller() (vmm.ContainerController, error) {
	g, ok := s.g.(vmm.ContainerController)
	if !ok {
		return nil, fmt.Errorf("pausing and updating containers: %w", errors.ErrUnsupported)
	}
	return g, nil
}

// Done is closed when the connection to the agent is lost, whether or not the machine is gone.
func (s *ExecSession) Done() <-chan struct{} { return s.g.Done() }

// Close closes the connection, and releases its port, if any.
func (s *ExecSession) Close() error {
	s.room.stop()
	err := s.g.Close()
	s.unlock()
	return ignoreClosed(err)
}

func (s *ExecSession) unlock() {
	if s.lock != nil {
		s.lock.unlock()
	}
}

var (
	_ vmm.ContainerStatist    = (*ExecSession)(nil)
	_ vmm.ContainerController = (*ExecSession)(nil)
)
