package gcs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/stratavm/strata/vmm"
)

// oneAtATime makes two writers that are one wait for each other.
func oneAtATime(s *vmm.ProcessSpec) {
	if s.Stdout == nil || s.Stderr == nil || !reflect.ValueOf(s.Stdout).Comparable() || s.Stdout != s.Stderr {
		return
	}
	w := &lockedWriter{w: s.Stdout}
	s.Stdout, s.Stderr = w, w
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// tidyTime bounds what is done about a process whose starter has gone away.
const tidyTime = 30 * time.Second

// Exec starts a process. When ctx ends before the guest has answered, the process is killed should it
// start all the same. ctx has no influence on a process that runs.
//
// One writer for both outputs is not written to at the same time. With a terminal there is no separate
// error stream. Reading from spec.Stdin cannot be interrupted: one read may outlive the process.
func (c *Client) Exec(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	if len(spec.Args) == 0 {
		return nil, fmt.Errorf("exec: no program given: %w", ErrNotSent)
	}
	if c.windows {
		return nil, fmt.Errorf("exec %s in a Windows guest: %w: %w", spec.Args[0], ErrUnsupported, ErrNotSent)
	}
	if (spec.ContainerID == "") != (spec.Root == "") {
		return nil, fmt.Errorf("exec: a container id and a root belong together: %w", ErrNotSent)
	}
	if err := CheckArguments(spec.Args, spec.Env); err != nil {
		return nil, fmt.Errorf("exec %s: %w: %w", printable(spec.Args[0][:min(len(spec.Args[0]), 100)]), ErrNotSent, err)
	}
	if spec.Terminal {
		spec.Stderr = nil
	}
	oneAtATime(&spec)
	p, again, err := c.exec(ctx, &spec)
	if again {
		p, _, err = c.exec(ctx, &spec)
	}
	if err != nil {
		return nil, fmt.Errorf("exec %s: %w", spec.Args[0], err)
	}
	return p, nil
}

// exec starts a process, in a container that it makes known to the guest where need be. again says that it failed
// because the container has ended or was deleted in between.
func (c *Client) exec(ctx context.Context, spec *vmm.ProcessSpec) (p *Process, again bool, err error) {
	if spec.ContainerID == "" {
		params, err := c.inMachine(spec)
		if err == nil {
			p, err = c.start(ctx, *spec, params, nil)
		}
		return p, false, err
	}
	info, first, err := c.enter(ctx, spec)
	if err != nil {
		return nil, false, err
	}
	params := c.parameters(spec)
	if first {
		p, err := c.start(ctx, *spec, params, info) // it is in the container's document
		return p, false, err
	}
	if _, params.OciProcess, err = c.documents(spec); err != nil && !errors.Is(err, ErrNamedUser) {
		return nil, false, err
	}
	if p, err = c.start(ctx, *spec, params, nil); err == nil {
		return p, false, nil
	}
	refusal, refused := errors.AsType[*Error](err)
	switch {
	case !refused:
		return nil, false, err
	case refusal.Result == ResultContainerNotFound:
		return nil, c.forget(spec.ContainerID, info), err // somebody else has deleted it
	case c.ours() || !info.first:
		return nil, false, err
	}
	// Another guest does not say that a container has stopped, and this may be the first sign of it.
	select {
	case <-info.stopped:
		return nil, true, err
	case <-time.After(stopNews):
	case <-ctx.Done():
	}
	return nil, false, err
}

// stopNews is how long the news of a process's end may come after the first refusal because of it.
const stopNews = 200 * time.Millisecond

// parameters are what all processes have.
func (c *Client) parameters(spec *vmm.ProcessSpec) *ProcessParameters {
	return &ProcessParameters{
		EmulateConsole: spec.Terminal, CreateStdInPipe: spec.Stdin != nil,
		CreateStdOutPipe: spec.Stdout != nil, CreateStdErrPipe: spec.Stderr != nil,
		StrataMakeDir: spec.MakeDir && c.ours(),
	}
}

// inMachine are the parameters of a process in the VM itself.
func (c *Client) inMachine(spec *vmm.ProcessSpec) (*ProcessParameters, error) {
	process := ociProcess(spec)
	params := c.parameters(spec)
	params.CreateInUtilityVM = true
	if c.ours() { // everything is in it, and only once
		params.OciProcess = process
		return params, nil
	}
	params.CommandArgs, params.WorkingDirectory = spec.Args, process.Cwd
	params.Environment = map[string]string{}
	for _, kv := range spec.Env {
		k, v, _ := strings.Cut(kv, "=")
		params.Environment[k] = v
	}
	if spec.Terminal {
		params.ConsoleSize = []uint16{spec.Height, spec.Width}
	}
	if spec.User != "" {
		return nil, fmt.Errorf("a user for a process outside containers: %w", ErrUnsupported)
	}
	return params, nil
}

// stdio holds the listeners and connections of a process's streams.
type stdio struct {
	listeners [3]net.Listener
	conns     [3]net.Conn
}

func (s *stdio) close() {
	for i := range s.listeners {
		if s.listeners[i] != nil {
			s.listeners[i].Close()
		}
		if s.conns[i] != nil {
			s.conns[i].Close()
		}
	}
}

// listen opens a port that nobody uses.
func (c *Client) listen() (net.Listener, uint32, error) {
	const tries = 1000 // other processes of this host may use ports, too
	for range tries {
		port := c.nextPort.Add(1) - 1
		l, err := c.transport.Listen(port)
		if err == nil {
			return l, port, nil
		}
		if !errors.Is(err, ErrPortTaken) {
			return nil, 0, err
		}
	}
	return nil, 0, fmt.Errorf("no free port for a stream: %w", ErrPortTaken)
}

// start starts a process. first is its container when it is the first process there: that goes again when
// the process does not start.
func (c *Client) start(ctx context.Context, spec vmm.ProcessSpec, params *ProcessParameters,
	first *container) (_ *Process, err error) {
	base := RequestBase{ContainerId: c.named(spec.ContainerID)}
	answered := false
	if first != nil {
		defer func() {
			if err != nil && (answered || errors.Is(err, ErrNotSent)) {
				c.tidy(func() { c.discard(spec.ContainerID, first, 0) })
			}
		}()
	}
	text, err := EncodeText(params)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	var ports StdioPorts
	var streams stdio
	wanted := [3]bool{spec.Stdin != nil, spec.Stdout != nil, spec.Stderr != nil}
	for i, port := range [3]*uint32{&ports.StdIn, &ports.StdOut, &ports.StdErr} {
		if !wanted[i] {
			continue
		}
		if streams.listeners[i], *port, err = c.listen(); err != nil {
			streams.close()
			return nil, fmt.Errorf("%w: %w", ErrNotSent, err)
		}
	}
	req := &ExecuteRequest{RequestBase: base,
		Settings: ExecuteSettings{ProcessParameters: text, VsockStdioRelaySettings: &ports}}
	kill := func(pid uint32) {
		tidy, cancel := context.WithTimeout(context.Background(), tidyTime)
		defer cancel()
		_ = c.call(tidy, TypeSignalProcess, &SignalRequest{RequestBase: base, ProcessId: pid}, &EmptyResponse{}, nil)
	}
	late := func(payload []byte) {
		var r ExecuteResponse
		started := json.Unmarshal(payload, &r) == nil && r.Result == ResultOK
		switch {
		case first != nil:
			c.discard(spec.ContainerID, first, r.ProcessId)
		case started:
			kill(r.ProcessId)
		}
	}
	var resp ExecuteResponse
	if err := c.call(ctx, TypeExecuteProcess, req, &resp, late); err != nil {
		_, answered = errors.AsType[*Error](err)
		streams.close()
		return nil, err
	}
	// The guest has dialled before it answered: what is not there by now will hardly come.
	for i, l := range streams.listeners {
		if l == nil {
			continue
		}
		if streams.conns[i], err = acceptOne(ctx, l); err != nil {
			streams.close()
			c.tidy(func() {
				if first != nil {
					c.discard(spec.ContainerID, first, resp.ProcessId)
				} else {
					kill(resp.ProcessId)
				}
			})
			return nil, fmt.Errorf("the guest did not connect the streams: %w", err)
		}
	}
	p := &Process{c: c, container: spec.ContainerID, pid: resp.ProcessId, done: make(chan struct{})}
	if first != nil {
		c.started(first, p)
	}
	p.run(spec, streams.conns)
	return p, nil
}

// Process is a process in the guest. Its methods may be called concurrently.
type Process struct {
	c         *Client
	container string // empty: the VM itself
	pid       uint32
	onExit    func() // called when the guest has told of the exit, or cannot any more; nil: nothing

	outputs sync.WaitGroup
	conns   [3]net.Conn
	done    chan struct{} // the exit is known and the output complete
	code    int
	err     error
}

func (p *Process) run(spec vmm.ProcessSpec, conns [3]net.Conn) {
	p.conns = conns
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
	// The guest's answer is the exit; the bridge's end ends this too. The question comes before any that a caller asks
	// about the container.
	var exit WaitResponse
	wait, err := p.c.send(context.Background(), TypeWaitForProcess, waitFor(p.c.named(p.container), p.pid), nil)
	go func() {
		defer close(p.done)
		if err == nil {
			err = p.c.answered(context.Background(), wait, &exit, nil)
		}
		p.code, p.err = int(int32(exit.ExitCode)), err
		if p.err != nil {
			p.closeStreams()
		}
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

// outputReader remembers why an output ended before its end. That we closed it is no reason.
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

// Pid is the number by which the guest knows the process.
func (p *Process) Pid() uint32 { return p.pid }

// Wait waits for the exit and for the last byte of output; output that is cut off is an error. A process
// that a signal killed has the exit code 128 plus the signal.
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

// Resize tells the terminal its size.
func (p *Process) Resize(ctx context.Context, width, height uint16) error {
	return p.c.call(ctx, TypeResizeConsole, &ResizeRequest{RequestBase: RequestBase{ContainerId: p.c.named(p.container)},
		ProcessId: p.pid, Width: width, Height: height}, &EmptyResponse{}, nil)
}

// closeTime is how long Close waits for a writer that does not take its bytes.
const closeTime = 10 * time.Second

// Close releases the process without ending it: its streams are closed. When it returns nothing is written to
// the writers of the ProcessSpec any more; a writer that blocks for longer than 10 seconds is an error.
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

// WaitProcess waits for the end of any process the guest knows, such as one started by an earlier
// Client, and returns its exit code. Streams are not waited for. container is empty for the VM itself.
func (c *Client) WaitProcess(ctx context.Context, container string, pid uint32) (int, error) {
	var resp WaitResponse
	err := c.call(ctx, TypeWaitForProcess, waitFor(c.named(container), pid), &resp, nil)
	return int(int32(resp.ExitCode)), err
}

func waitFor(container string, pid uint32) *WaitRequest {
	return &WaitRequest{RequestBase: RequestBase{ContainerId: container},
		ProcessId: pid, TimeoutInMs: InfiniteTimeout}
}

// SignalProcess sends a signal to any process the guest knows. One that has exited is no error; a container that the
// guest does not know is.
func (c *Client) SignalProcess(ctx context.Context, container string, pid uint32, sig int) error {
	err := c.call(ctx, TypeSignalProcess, &SignalRequest{RequestBase: RequestBase{ContainerId: c.named(container)},
		ProcessId: pid, Options: &SignalOptions{sig}}, &EmptyResponse{}, nil)
	if refusal, ok := errors.AsType[*Error](err); ok && refusal.Result == ResultElementNotFound {
		return nil
	}
	return err
}
