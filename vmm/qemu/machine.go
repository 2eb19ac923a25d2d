package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/stratavm/strata/internal/applyengine"
	"github.com/stratavm/strata/vmm"
)

// Machine is a QEMU process that this process controls. It implements vmm.Machine.
type Machine struct {
	dir  string
	desc description
	log  *slog.Logger
	proc *process
	qmp  *qmpClient
	port *guestPort
	lock *portLock

	// base is cancelled when the machine is gone or closed, and with it background work.
	base   context.Context
	cancel context.CancelCauseFunc
	work   sync.WaitGroup // except Changes
	engine *applyengine.Engine
	known  *applyengine.Known // the attached devices
	done   chan struct{}

	mu        sync.Mutex
	err       error                    // why the machine is gone
	shutdown  string                   // the reason that QEMU gave before it ended
	panicked  bool                     // the guest's kernel panicked
	killed    bool                     // by us
	closing   bool                     // Close was called: no new work
	unplugged map[string]chan struct{} // by QEMU's id of the device that is being unplugged
	servers   map[string]*process      // of NICs and shares that this process has plugged, by QEMU's id of the device
	stopped   chan struct{}            // receives when the guest was paused
}

var _ vmm.Machine = (*Machine)(nil)

// connect takes control of a running QEMU. It takes ownership of proc and lock, even on failure.
func connect(ctx context.Context, dir string, desc description, proc *process, lock *portLock,
	c Config) (*Machine, error) {
	m := &Machine{dir: dir, desc: desc, log: c.Logger.With("vm", desc.ID), proc: proc, lock: lock,
		done:      make(chan struct{}),
		unplugged: map[string]chan struct{}{}, servers: map[string]*process{},
		stopped: make(chan struct{}, 1)}
	m.port = &guestPort{reach: desc.reach(dir, controlPort), connect: desc.connecting(c.connect), log: m.log}
	m.base, m.cancel = context.WithCancelCause(context.Background())
	conn, err := dialSocket(ctx, dir, qmpSocket)
	if err == nil {
		m.qmp, err = newQMPClient(ctx, conn, m.event)
	}
	if err != nil {
		err = fmt.Errorf("qemu: %w%s", endedMeanwhile(ctx, proc, err), logTail(dir))
		proc.close()
		lock.unlock()
		return nil, err
	}
	m.work.Go(m.watch)
	if err := m.load(ctx, c.memory); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	if waiting, _, err := resumeIfRoom(ctx, m.qmp, m.attachedDir()); err != nil || waiting != nil {
		if waiting != nil {
			err = waiting.err()
		}
		return nil, errors.Join(fmt.Errorf("qemu: machine %s: %w", desc.ID, m.explain(err)), m.Close())
	}
	m.work.Go(func() { watchRoom(m.base, m.qmp, m.dir, m.log, m.stopped) })
	devices, err := m.inventory(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("qemu: find out what is attached: %w", m.explain(err)), m.Close())
	}
	m.known = applyengine.NewKnown(false, devices...)
	m.engine = applyengine.New(m.base, vmm.Linux, m.known, m.log)
	return m, nil
}

// event handles an event of QEMU. It is called by the goroutine that reads them.
func (m *Machine) event(name string, data json.RawMessage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch name {
	case "DEVICE_DELETED":
		var d struct {
			Device string `json:"device"`
		}
		if json.Unmarshal(data, &d) != nil {
			return
		}
		if ch := m.unplugged[d.Device]; ch != nil {
			delete(m.unplugged, d.Device)
			close(ch)
		}
	case "SHUTDOWN":
		var d struct {
			Reason string `json:"reason"`
		}
		if json.Unmarshal(data, &d) == nil {
			m.shutdown = d.Reason
		}
	case "GUEST_PANICKED":
		m.panicked = true
	case "STOP":
		select {
		case m.stopped <- struct{}{}:
		default:
		}
	}
}

// ID implements vmm.Machine.
func (m *Machine) ID() string { return m.desc.ID }

// OS implements vmm.Machine.
func (m *Machine) OS() vmm.OS { return vmm.Linux }

// Limits implements vmm.Machine.
func (m *Machine) Limits() vmm.Limits { return limits(m.desc.MemoryMiB, m.desc.NoShares) }

// Done implements vmm.Machine.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Err implements vmm.Machine.
func (m *Machine) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// errClosed is matched by the error of calls after Close.
var errClosed = errors.New("the machine was closed in this process")

func (m *Machine) closedErr() error { return fmt.Errorf("machine %s: %w", m.desc.ID, errClosed) }

// begin registers an operation, which Close then waits for. The caller calls m.work.Done.
func (m *Machine) begin() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.err != nil:
		return m.err
	case m.closing:
		return m.closedErr()
	}
	m.work.Add(1)
	return nil
}

// withGuest calls ask with a connection to the agent. The context of ask ends with ctx or the machine.
func (m *Machine) withGuest(ctx context.Context, ask func(context.Context, guest) error) error {
	if err := m.begin(); err != nil {
		return err
	}
	defer m.work.Done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(m.base, func() { cancel(context.Cause(m.base)) })
	defer stop()
	g, err := m.port.get(ctx)
	if err == nil {
		err = ask(ctx, g)
	}
	return m.explain(err)
}

// Exec implements vmm.Machine. The process is attached to the control connection: after Close it cannot be waited for.
// See OpenExec for processes that other programs than the controlling one start.
func (m *Machine) Exec(ctx context.Context, spec vmm.ProcessSpec) (p vmm.Process, err error) {
	err = m.withGuest(ctx, func(ctx context.Context, g guest) error {
		p, err = g.Exec(ctx, spec)
		return err
	})
	return p, err
}

// FindProcess implements vmm.Machine.
func (m *Machine) FindProcess(ctx context.Context, containerID string, pid uint32) (p vmm.Process, err error) {
	err = m.withGuest(ctx, func(ctx context.Context, g guest) error {
		p, err = g.FindProcess(ctx, containerID, pid)
		return err
	})
	return p, err
}

// DeleteContainerState implements vmm.Machine.
func (m *Machine) DeleteContainerState(ctx context.Context, id string) error {
	return m.withGuest(ctx, func(ctx context.Context, g guest) error { return g.DeleteContainerState(ctx, id) })
}

// Stacks implements vmm.Machine.
func (m *Machine) Stacks(ctx context.Context) (stacks string, err error) {
	err = m.withGuest(ctx, func(ctx context.Context, g guest) error {
		stacks, err = g.Stacks(ctx)
		return err
	})
	return stacks, err
}

// Ready waits until the guest agent answers.
func (m *Machine) Ready(ctx context.Context) error {
	return m.withGuest(ctx, func(context.Context, guest) error { return nil })
}

// Console returns the guest's console output since the previous call, at most the last 64 KiB.
func (m *Machine) Console(ctx context.Context) (string, error) {
	var text string
	err := m.qmp.do(ctx, "ringbuf-read", map[string]any{"device": "console", "size": 65536, "format": "utf8"}, &text)
	return text, err
}

// terminateTime bounds what Shutdown does after its context has ended: a process that is killed exits at once unless it
// is blocked in the kernel.
const terminateTime = 10 * time.Second

// unservedTime bounds the shutdown of a guest if the server of a share has exited.
const unservedTime = 5 * time.Second

// Shutdown implements vmm.Machine. It removes the machine's files once it has ended.
func (m *Machine) Shutdown(ctx context.Context) error {
	if m.anyServerDied() { // processes that wait for it prevent a clean shutdown
		limited, cancel := context.WithTimeoutCause(ctx, unservedTime, ErrServerDied)
		defer cancel()
		ctx = limited
	}
	err := m.withGuest(ctx, func(ctx context.Context, g guest) error { return g.Shutdown(ctx) })
	if err == nil || m.Err() != nil {
		select {
		case <-m.done:
			if err = m.Err(); errors.Is(err, vmm.ErrGone) {
				return m.tidy()
			} // otherwise QEMU still runs, without a control connection
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	m.log.Warn("the guest does not shut down, the machine is terminated", "error", err)
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), terminateTime)
	defer cancel()
	return m.Terminate(limited)
}

// Terminate implements vmm.Machine. It removes the machine's files once it has ended.
func (m *Machine) Terminate(ctx context.Context) error {
	m.mu.Lock()
	m.killed = m.err == nil
	m.mu.Unlock()
	if err := m.proc.kill(); err != nil && m.Err() == nil {
		return fmt.Errorf("terminate machine %s: %w", m.desc.ID, err)
	}
	// Wait for the process first: done alone may mean that control of it was lost.
	for _, ended := range []<-chan struct{}{m.proc.exited, m.done} {
		select {
		case <-ended:
		case <-ctx.Done():
			return fmt.Errorf("terminate machine %s: process %d does not end: %w", m.desc.ID, m.proc.pid, context.Cause(ctx))
		}
	}
	m.mu.Lock()
	if !errors.Is(m.err, vmm.ErrGone) {
		m.err = fmt.Errorf("machine %s: %w: it was terminated (before that: %w)", m.desc.ID, vmm.ErrGone, m.err)
	}
	m.mu.Unlock()
	return m.tidy()
}

func (m *Machine) tidy() error {
	limited, cancel := context.WithTimeout(context.Background(), terminateTime)
	defer cancel()
	if err := endServers(limited, m.dir); err != nil {
		return fmt.Errorf("machine %s has ended, but what served its shares runs: %w", m.desc.ID, err)
	}
	if err := removeState(m.dir); err != nil {
		return fmt.Errorf("machine %s has ended, but its files are left: %w", m.desc.ID, err)
	}
	return nil
}

// Close implements vmm.Machine: the machine keeps running. Operations in progress in QEMU or in the guest complete
// there; after the machine is opened again, Observe reports their results.
func (m *Machine) Close() error {
	m.mu.Lock()
	first := !m.closing
	m.closing = true
	m.mu.Unlock()
	if !first {
		m.rest()
		return nil
	}
	m.cancel(m.closedErr())
	err := m.port.close()
	m.qmp.close()
	<-m.qmp.done
	m.rest()
	m.closeServers()
	m.proc.close()
	m.lock.unlock()
	return ignoreClosed(err)
}

// rest waits until all work has ended.
func (m *Machine) rest() {
	m.work.Wait()
	if m.engine != nil { // nil: connect failed
		m.engine.Wait()
	}
}
