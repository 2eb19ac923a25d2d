package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/stratavm/strata/vmm"
)

// endGrace bounds how long QEMU may keep running after it has closed its control socket.
const endGrace = 10 * time.Second

// errKilled says that QEMU was killed by a signal from outside.
var errKilled = errors.New("ended by a signal from outside")

// killedEnding is the suffix for a killed process; the host's out-of-memory killer kills it in the same way.
const killedEnding = " (SIGKILL)"

// gone returns the error of a QEMU process that has ended.
func (p *process) gone(shutdown string) error {
	if p.ending == killedEnding || shutdown == hostSignal {
		return fmt.Errorf("%w: %w", vmm.ErrGone, errKilled)
	}
	return vmm.ErrGone
}

// hostSignal is QEMU's shutdown reason for a signal from the host.
const hostSignal = "host-signal"

// endedMeanwhile prefixes the error of connecting to a QEMU that is exiting with vmm.ErrGone: its sockets are closed
// before the process ends.
func endedMeanwhile(ctx context.Context, proc *process, err error) error {
	select {
	case <-proc.exited:
		return fmt.Errorf("%w: QEMU (process %d) has ended%s: %w", proc.gone(""), proc.pid, proc.ending, err)
	case <-ctx.Done():
	case <-time.After(endGrace):
	}
	return err
}

// watch waits for the end of QEMU: of its process or of its control connection, whichever is first.
func (m *Machine) watch() {
	select {
	case <-m.proc.exited:
		// The last events may still be in the socket.
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

// reason returns why QEMU ended. m.mu is held.
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

// end marks the machine as gone, which ends calls in progress.
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

// explain prefixes an error with the end of the machine, if that caused it.
func (m *Machine) explain(err error) error {
	if err == nil {
		return nil
	}
	if gone := m.goneSoon(err); gone != nil && !errors.Is(err, gone) {
		return fmt.Errorf("%w (%w)", gone, err)
	}
	return err
}

// settleTime bounds how long after a broken connection the machine may be found to be gone.
const settleTime = 500 * time.Millisecond

// goneSoon returns the machine's error, waiting for it: a broken connection is often the first sign of the end.
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
