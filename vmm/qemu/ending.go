package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/stratavm/strata/vmm"
)

// endGrace is how long QEMU may live on after it has closed its control socket.
const endGrace = 10 * time.Second

// errKilled says that QEMU did not end by itself: it is nobody's fault but that of who ended it.
var errKilled = errors.New("ended by a signal from outside")

// killedEnding is the ending of a process that was killed, as the host does too when it runs out of memory.
const killedEnding = " (SIGKILL)"

// gone is the error of a QEMU that has ended.
func (p *process) gone(shutdown string) error {
	if p.ending == killedEnding || shutdown == hostSignal {
		return fmt.Errorf("%w: %w", vmm.ErrGone, errKilled)
	}
	return vmm.ErrGone
}

// hostSignal is QEMU's word for a signal that told it to end.
const hostSignal = "host-signal"

// endedMeanwhile puts vmm.ErrGone before an error of connecting to a QEMU that is on its way out: its sockets go
// before the process does.
func endedMeanwhile(ctx context.Context, proc *process, err error) error {
	select {
	case <-proc.exited:
		return fmt.Errorf("%w: QEMU (process %d) has ended%s: %w", proc.gone(""), proc.pid, proc.ending, err)
	case <-ctx.Done():
	case <-time.After(endGrace):
	}
	return err
}

// watch notices the end of QEMU: by its process, or by its control connection, whichever is first.
func (m *Machine) watch() {
	select {
	case <-m.proc.exited:
		// What it said last is still in the socket.
		select {
		case <-m.qmp.done:
		case <-time.After(endGrace):
		}
	case <-m.qmp.done:
		select {
		case <-m.proc.exited:
		case <-m.base.Done():
			return // closed by us
		case <-time.After(endGrace):
			m.log.Error("QEMU runs on but its control connection broke", "error", m.qmp.closedErr())
			m.end(
				fmt.Errorf("machine %s: QEMU (process %d) runs on but its control connection broke; open the machine again: %w",
					m.desc.ID, m.proc.pid, m.qmp.closedErr()))
			return
		}
	case <-m.base.Done():
		return
	}
	m.mu.Lock()
	gone := vmm.ErrGone
	if !m.killed { // by us
		gone = m.proc.gone(m.shutdown)
	}
	err := fmt.Errorf("machine %s: %w: %s", m.desc.ID, gone, m.reason())
	m.mu.Unlock()
	m.end(err)
}

// reason says why QEMU ended. m.mu is held.
func (m *Machine) reason() string {
	switch {
	case m.killed:
		return "it was terminated"
	case m.panicked:
		return "the guest's kernel panicked"
	}
	switch m.shutdown {
	case "guest-shutdown":
		return "the guest powered off"
	case "guest-reset":
		return "the guest reset itself, which is how a kernel panic or the death of the agent ends"
	case "guest-panic":
		return "the guest's kernel panicked"
	case "host-qmp-quit":
		return "QEMU was told to quit over its control socket"
	case hostSignal:
		return "QEMU was told to end by a signal" + logTail(m.dir)
	case "":
		return fmt.Sprintf("QEMU (process %d) was killed or crashed%s; dmesg tells whether the host ran out of memory",
			m.proc.pid, m.proc.ending) + logTail(m.dir)
	}
	return "QEMU ended: " + m.shutdown + logTail(m.dir)
}

// end marks the machine as gone. Work under way sees it.
func (m *Machine) end(err error) {
	m.mu.Lock()
	if m.err == nil {
		m.err = err
		m.log.Info("the machine is gone", "reason", err)
	}
	m.mu.Unlock()
	m.cancel(err)
	close(m.done)
	_ = m.port.close() // the other end is gone
}

// explain puts the end of the machine before an error that came of it.
func (m *Machine) explain(err error) error {
	if err == nil {
		return nil
	}
	if gone := m.goneSoon(err); gone != nil && !errors.Is(err, gone) {
		return fmt.Errorf("%w (%w)", gone, err)
	}
	return err
}

// settleTime is how long a broken connection may be ahead of the news that the machine is gone.
const settleTime = 500 * time.Millisecond

// goneSoon returns the machine's error. A connection that broke is often the first sign of the end.
func (m *Machine) goneSoon(err error) error {
	if errors.Is(err, vmm.ErrGuestUnreachable) || errors.Is(err, errQMPClosed) || errors.Is(err, io.EOF) {
		select {
		case <-m.done:
		case <-m.base.Done():
		case <-time.After(settleTime):
		}
	}
	return m.Err()
}
