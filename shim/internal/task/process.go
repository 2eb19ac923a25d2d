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

// killed is the exit code of a process whose VM has ended, and maxCode the highest that a process has.
const (
	killed  = 128 + int(syscall.SIGKILL)
	maxCode = 255
)

// Times.
const (
	signalTime = 2 * time.Second  // a signal: a guest that takes longer does not answer
	answerTime = 10 * time.Second // what else the guest is asked
	startTime  = 30 * time.Second // how long a signal waits for a process that is being started

	// How long the start of a process may take, of which the guest gives its runtime a minute, and that of a VM and of
	// what is mounted in it.
	execTime   = 2 * time.Minute
	createTime = 5 * time.Minute

	// How long an output takes nothing from which on nobody is taken to read it: that of a program that has exited, and
	// that of one that is killed.
	unreadTime = 10 * time.Second
	deadTime   = 2 * time.Second
)

// process is the first process of a container, or one beside it. It is created, runs, and has ended.
type process struct {
	id    string // empty: the first
	names stdio.Names
	io    *stdio.Streams
	done  chan struct{} // closed when it has ended and all its output is out

	starting chan struct{} // takes one element while the process is started
	unread   time.Duration // see unreadTime

	sizing sync.Mutex // the guest is told one size after the other

	mu     sync.Mutex
	spec   vmm.ProcessSpec
	proc   vmm.Process // nil: it was never started
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
		starting: make(chan struct{}, 1), unread: unreadTime}, nil
}

// status is what containerd knows.
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
	limited, cancel := noAnswer(ctx, execTime)
	defer cancel()
	proc, err := exec(limited, spec) // with the size of its terminal as it is now
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.proc = proc
	same := p.spec.Width == spec.Width && p.spec.Height == spec.Height
	p.mu.Unlock()
	if !same {
		_ = p.tellSize(ctx) // a terminal of another size is no reason to fail
	}
	return nil
}

// noAnswer is a context for what a guest does that may not answer any more.
func noAnswer(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w for %s: %w", uvm.ErrNoAnswer, limit,
		context.DeadlineExceeded))
}

// hold keeps the process from being started until release is called.
func (p *process) hold(ctx context.Context) (release func(), err error) {
	return Take(ctx, p.starting, "the process is being started")
}

// Take puts an element into a channel that takes one, for release to take it out. Where others have it until ctx ends
// the error says what they do.
func Take(ctx context.Context, one chan struct{}, others string) (release func(), err error) {
	select {
	case one <- struct{}{}:
		return func() { <-one }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w", others, context.Cause(ctx))
	}
}

// wait waits for the end of a process that was started, and of its output. Output that nobody reads any more does not
// keep it.
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
	case code < 0 || code > maxCode: // no process ends like that
		code = maxCode
	}
	p.mu.Lock()
	p.ended, p.code, p.exited = true, code, time.Now()
	p.mu.Unlock()
	return errors.Join(err, p.proc.Close())
}

// end notes the end of a process that was not started.
func (p *process) end(code int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended, p.code, p.exited = true, code, time.Now()
}

// finish tells who waits.
func (p *process) finish() {
	p.io.Close()
	close(p.done)
}

// signal sends a signal to a process that runs.
func (p *process) signal(ctx context.Context, sig uint32) error {
	if sig == uint32(syscall.SIGKILL) {
		p.io.GiveUp(deadTime)
	}
	limited, cancel := context.WithTimeout(ctx, signalTime)
	defer cancel()
	return p.proc.Signal(limited, int(sig))
}

// resize notes the size of the terminal, and tells a process that runs.
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
	return p.tellSize(ctx)
}

// tellSize tells a process that runs the size that is noted.
func (p *process) tellSize(ctx context.Context) error {
	p.sizing.Lock()
	defer p.sizing.Unlock()
	p.mu.Lock()
	proc, ended, width, height := p.proc, p.ended, p.spec.Width, p.spec.Height
	p.mu.Unlock()
	if proc == nil || ended {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return proc.Resize(limited, width, height)
}
