package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/stratavm/strata/vmm"
)

// ExecSession runs programs in a machine that another process may control at the same time.
type ExecSession struct {
	g    guest
	lock *portLock // nil over vsock
	room sessionWatch
}

// OpenExec connects to the guest of the machine in dir. Its error matches ErrPortsTaken when the guest
// is reached by serial ports and none is free, vmm.ErrNoVM, or vmm.ErrGone.
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
	s := &ExecSession{}
	port := 0
	if desc.Transport != TransportVSock {
		if s.lock, port, err = freePort(dir, desc.ExecPorts); err != nil {
			return nil, err
		}
	}
	// A machine that dies meanwhile would keep us waiting for its agent.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-proc.exited:
			cancel(fmt.Errorf("machine %s: %w", desc.ID, vmm.ErrGone))
		case <-ctx.Done():
		}
	}()
	p := &guestPort{connect: connect, log: log}
	if s.g, err = p.dial(ctx, desc.reach(dir, port)); err != nil {
		s.unlock()
		return nil, fmt.Errorf("qemu: machine %s: %w", desc.ID, noGuest(err))
	}
	s.room.start(dir, log.With("vm", desc.ID))
	return s, nil
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

// Exec starts a program. It ends with the session.
func (s *ExecSession) Exec(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	return s.g.Exec(ctx, spec)
}

// FindProcess implements vmm.Runner.
func (s *ExecSession) FindProcess(ctx context.Context, containerID string, pid uint32) (vmm.Process, error) {
	return s.g.FindProcess(ctx, containerID, pid)
}

// Done is closed when the connection to the agent is gone, with the machine or without.
func (s *ExecSession) Done() <-chan struct{} { return s.g.Done() }

// Close ends the connection, and gives the port back if it took one.
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
