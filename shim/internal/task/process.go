package task

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"

	"github.com/stratavm/strata/shim/internal/stdio"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// killed is the exit code of a process whose VM has ended, maxCode the highest exit code of a Linux process.
const (
	killed  = 128 + int(syscall.SIGKILL)
	maxCode = 255
)

const (
	signalTimeout = 2 * time.Second  // delivering a signal in the guest
	answerTimeout = 10 * time.Second // other requests to the guest
	startTimeout  = 30 * time.Second // how long a signal waits for a process that is being started

	execTimeout   = 2 * time.Minute // starting a process; the guest gives its runtime one minute of it
	createTimeout = 5 * time.Minute // starting a VM and mounting in it

	// Output that blocks for this long because nobody reads it is dropped.
	unreadTimeout = 10 * time.Second // after the process has exited
	killedTimeout = 2 * time.Second  // after SIGKILL
)

// process is the first process of a container or an exec process. Its states are created, running and stopped.
type process struct {
	id    string // the exec id; empty for the first process
	names stdio.Names
	io    *stdio.Streams
	done  chan struct{} // closed when it has ended and its output is written

	starting chan struct{} // semaphore of capacity 1, held while the process is started, signalled or deleted
	unread   time.Duration // unreadTimeout, or less in tests

	sizing sync.Mutex // serializes sendSize, so that the latest size is sent last

	mu     sync.Mutex
	spec   vmm.ProcessSpec
	proc   vmm.Process // nil until started
	ended  bool
	code   int
	exited time.Time
}

func newProcess(id string, names stdio.Names, spec vmm.ProcessSpec) (*process, error) {
	streams, err := stdio.Open(names)
	if err != nil {
		return nil, err
	}
	spec.Stdin, spec.Stdout, spec.Stderr = streams.Stdin(), streams.Stdout(), streams.Stderr()
	return &process{id: id, names: names, io: streams, spec: spec, done: make(chan struct{}),
		starting: make(chan struct{}, 1), unread: unreadTimeout}, nil
}

// status returns the status, and once stopped the exit code and time.
func (p *process) status() (s task.Status, code int, exited time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.ended:
		return task.Status_STOPPED, p.code, p.exited
	case p.proc != nil:
		return task.Status_RUNNING, 0, time.Time{}
	}
	return task.Status_CREATED, 0, time.Time{}
}

// hasExited reports whether a process has exited, even if its output is still being read.
func (p *process) hasExited() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e, ok := p.proc.(interface{ Exited() <-chan struct{} }); ok {
		select {
		case <-e.Exited():
			return true
		default:
		}
	}
	return p.ended
}

// start starts the process.
func (p *process) start(ctx context.Context, exec func(context.Context, vmm.ProcessSpec) (vmm.Process, error)) error {
	release, err := p.hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	if s, _, _ := p.status(); s != task.Status_CREATED {
		return fmt.Errorf("it was started before: %w", errdefs.ErrFailedPrecondition)
	}
	if err := p.io.Begin(); err != nil {
		return err
	}
	p.mu.Lock()
	spec := p.spec
	p.mu.Unlock()
	limited, cancel := noAnswer(ctx, execTimeout)
	defer cancel()
	proc, err := exec(limited, spec)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.proc = proc
	same := p.spec.Width == spec.Width && p.spec.Height == spec.Height // no resize while it was started
	p.mu.Unlock()
	if !same {
		_ = p.sendSize(ctx) // a wrong terminal size is no reason to fail
	}
	return nil
}

// noAnswer returns a context for a request to a guest: after limit it ends with a cause that matches uvm.ErrNoAnswer.
func noAnswer(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w for %s: %w", uvm.ErrNoAnswer, limit,
		context.DeadlineExceeded))
}

// hold blocks until the process is not being started, signalled or deleted, and prevents that until release is called.
func (p *process) hold(ctx context.Context) (release func(), err error) {
	return Acquire(ctx, p.starting, "the process is being started, signalled or deleted")
}

// Acquire acquires sem, a semaphore: a channel with a buffer of one. It blocks until the semaphore is free or ctx ends;
// busy, the reason why it is not free, begins the error.
func Acquire(ctx context.Context, sem chan struct{}, busy string) (release func(), err error) {
	select {
	case sem <- struct{}{}:
		return func() { <-sem }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w", busy, context.Cause(ctx))
	}
}

// wait waits until a started process has exited and its output is written. Output that nobody reads is dropped, see
// unreadTimeout.
func (p *process) wait(ctx context.Context) error {
	if e, ok := p.proc.(interface{ Exited() <-chan struct{} }); ok {
		select {
		case <-e.Exited():
			p.io.GiveUp(p.unread)
		case <-ctx.Done():
		}
	}
	code, err := p.proc.Wait(ctx)
	switch {
	case err != nil:
		code = killed
	case code < 0 || code > maxCode: // invalid: the guest is not trusted
		code = maxCode
	}
	p.mu.Lock()
	p.ended, p.code, p.exited = true, code, time.Now()
	p.mu.Unlock()
	return errors.Join(err, p.proc.Close())
}

// end records the exit of a process that was not started.
func (p *process) end(code int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended, p.code, p.exited = true, code, time.Now()
}

// finish closes the streams and wakes those that wait on done.
func (p *process) finish() {
	p.io.Close()
	close(p.done)
}

// signal sends a signal to a running process.
func (p *process) signal(ctx context.Context, sig uint32) error {
	if sig == uint32(syscall.SIGKILL) {
		p.io.GiveUp(killedTimeout)
	}
	limited, cancel := context.WithTimeout(ctx, signalTimeout)
	defer cancel()
	return p.proc.Signal(limited, int(sig))
}

// resize sets the size of the terminal, in characters, also of a running process.
func (p *process) resize(ctx context.Context, width, height uint32) error {
	if width > 0xffff || height > 0xffff {
		return fmt.Errorf("a terminal of %d times %d characters: %w", width, height, errdefs.ErrInvalidArgument)
	}
	p.mu.Lock()
	if !p.spec.Terminal {
		p.mu.Unlock()
		return fmt.Errorf("the process has no terminal: %w", errdefs.ErrFailedPrecondition)
	}
	p.spec.Width, p.spec.Height = uint16(width), uint16(height)
	p.mu.Unlock()
	return p.sendSize(ctx)
}

// sendSize sends the recorded terminal size to the guest if the process runs.
func (p *process) sendSize(ctx context.Context) error {
	p.sizing.Lock()
	defer p.sizing.Unlock()
	p.mu.Lock()
	proc, ended, width, height := p.proc, p.ended, p.spec.Width, p.spec.Height
	p.mu.Unlock()
	if proc == nil || ended {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return proc.Resize(limited, width, height)
}
