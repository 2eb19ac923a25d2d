package gcs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/stratavm/strata/vmm"
)

// Process is a process in the guest. Its methods may be called concurrently.
type Process struct {
	c         *Client
	container string // empty: the VM itself
	pid       uint32
	onExit    func() // called before exited is closed; may be nil

	outputs sync.WaitGroup
	conns   [3]net.Conn
	exited  chan struct{} // closed when the exit is known, or cannot be any more
	done    chan struct{} // closed after exited, when the output is complete
	code    int
	memory  bool // see OutOfMemory
	err     error
}

func (p *Process) run(spec vmm.ProcessSpec, conns [3]net.Conn) {
	p.conns, p.exited = conns, make(chan struct{})
	if in := conns[0]; in != nil {
		go func() {
			_, _ = io.Copy(in, spec.Stdin) // a process may end without reading everything
			if half, ok := in.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite()
			} else {
				in.Close()
			}
		}()
	}
	var readers [3]outputReader
	for i, w := range []io.Writer{1: spec.Stdout, 2: spec.Stderr} {
		if conn := conns[i]; conn != nil && w != nil {
			r := &readers[i]
			r.r = conn
			p.outputs.Go(func() {
				if _, err := io.Copy(w, r); err != nil {
					_, _ = io.Copy(io.Discard, r) // a full disk here must not stop the process there
				}
				conn.Close()
			})
		}
	}
	// The request ends with the process or the bridge. It is sent before any request of a caller about the container.
	var exit WaitResponse
	wait, err := p.c.send(context.Background(), TypeWaitForProcess, waitFor(p.c.named(p.container), p.pid), nil)
	go func() {
		defer close(p.done)
		if err == nil {
			err = p.c.answered(context.Background(), wait, &exit, nil)
		}
		p.code, p.memory, p.err = int(int32(exit.ExitCode)), exit.StrataOutOfMemory, err
		if p.err != nil {
			p.closeStreams()
		}
		close(p.exited)
		if p.onExit != nil {
			p.onExit()
		}
		p.outputs.Wait()
		if err := errors.Join(readers[1].err, readers[2].err); err != nil && p.err == nil {
			p.err = fmt.Errorf("the output of process %d is cut off: %w", p.pid, err)
		}
		if p.conns[0] != nil {
			p.conns[0].Close()
		}
	}()
}

// outputReader records the error by which an output ended early, unless this side has closed it.
type outputReader struct {
	r   io.Reader
	err error
}

func (o *outputReader) Read(p []byte) (int, error) {
	n, err := o.r.Read(p)
	if err != nil && o.err == nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		o.err = err
	}
	return n, err
}

// OutOfMemory implements vmm.OutOfMemory.
func (p *Process) OutOfMemory() bool {
	select {
	case <-p.done:
		return p.memory
	default:
		return false
	}
}

// Pid returns the process's id in the guest.
func (p *Process) Pid() uint32 { return p.pid }

// Exited returns a channel that is closed when the process has exited, or the guest cannot report it any more. Output
// may still be arriving; Wait waits for that.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Wait waits until the process has exited and its output is complete, and returns its exit code, which is 128 plus the
// signal for a killed process. Truncated output is an error.
func (p *Process) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.done:
		return p.code, p.err
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for process %d: %w", p.pid, context.Cause(ctx))
	}
}

// Signal sends a signal by its Linux number. A process that has exited is no error.
func (p *Process) Signal(ctx context.Context, sig int) error {
	return p.c.SignalProcess(ctx, p.container, p.pid, sig)
}

// Resize sets the size of the terminal, in characters.
func (p *Process) Resize(ctx context.Context, width, height uint16) error {
	return p.c.call(ctx, TypeResizeConsole, &ResizeRequest{RequestBase: RequestBase{ContainerId: p.c.named(p.container)},
		ProcessId: p.pid, Width: width, Height: height}, &EmptyResponse{}, nil)
}

// Close closes the process's streams without ending it. After it has returned, nothing is written to the writers of the
// ProcessSpec; a write that blocks for longer than 10 seconds is an error.
func (p *Process) Close() error {
	p.closeStreams()
	rest := make(chan struct{})
	go func() {
		p.outputs.Wait()
		close(rest)
	}()
	select {
	case <-rest:
		return nil
	case <-time.After(closeTime):
		return fmt.Errorf("close process %d: a write of its output has blocked for %v", p.pid, closeTime)
	}
}

func (p *Process) closeStreams() {
	for _, c := range p.conns {
		if c != nil {
			c.Close()
		}
	}
}

// WaitProcess waits until a process has ended, also one that an earlier Client has started, and returns its exit code.
// It does not wait for streams. container is empty for the VM itself.
func (c *Client) WaitProcess(ctx context.Context, container string, pid uint32) (int, error) {
	var resp WaitResponse
	err := c.call(ctx, TypeWaitForProcess, waitFor(c.named(container), pid), &resp, nil)
	return int(int32(resp.ExitCode)), err
}

func waitFor(container string, pid uint32) *WaitRequest {
	return &WaitRequest{RequestBase: RequestBase{ContainerId: container},
		ProcessId: pid, TimeoutInMs: InfiniteTimeout}
}

// SignalProcess sends a signal to a process, also one that an earlier Client has started. A process that has exited is
// no error; an unknown container is.
func (c *Client) SignalProcess(ctx context.Context, container string, pid uint32, sig int) error {
	err := c.call(ctx, TypeSignalProcess, &SignalRequest{RequestBase: RequestBase{ContainerId: c.named(container)},
		ProcessId: pid, Options: &SignalOptions{sig}}, &EmptyResponse{}, nil)
	if refusal, ok := errors.AsType[*Error](err); ok && refusal.Result == ResultElementNotFound {
		return nil
	}
	return err
}
