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

	specs "github.com/opencontainers/runtime-spec/specs-go"

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
	if (spec.ContainerID == "") != (spec.Root == "") {
		return nil, fmt.Errorf("exec: a container id and a root belong together: %w", ErrNotSent)
	}
	if c.windows {
		return nil, fmt.Errorf("exec %s in a Windows guest: %w: %w", spec.Args[0], ErrUnsupported, ErrNotSent)
	}
	if spec.Terminal {
		spec.Stderr = nil
	}
	oneAtATime(&spec)
	p, err := c.exec(ctx, &spec)
	if refusal, ok := errors.AsType[*Error](err); ok && refusal.Result == ResultContainerNotFound && c.forget(spec.ContainerID) {
		p, err = c.exec(ctx, &spec) // somebody else has deleted it in the meantime
	}
	if err != nil {
		return nil, fmt.Errorf("exec %s: %w", spec.Args[0], err)
	}
	return p, nil
}

func (c *Client) exec(ctx context.Context, spec *vmm.ProcessSpec) (*Process, error) {
	params, container, err := c.prepare(ctx, spec)
	if err != nil {
		return nil, err
	}
	return c.start(ctx, *spec, container, params)
}

// forget notes that the guest does not know a container; false when that was no news.
func (c *Client) forget(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.created[id]
	delete(c.created, id)
	return ok
}

// prepare makes the container known and the parameters of the process.
func (c *Client) prepare(ctx context.Context, spec *vmm.ProcessSpec) (*ProcessParameters, string, error) {
	process := ociProcess(spec)
	params := &ProcessParameters{
		EmulateConsole: spec.Terminal, CreateStdInPipe: spec.Stdin != nil,
		CreateStdOutPipe: spec.Stdout != nil, CreateStdErrPipe: spec.Stderr != nil,
	}
	ours := c.caps.GuestDefinedCapabilities.StrataAgent > 0
	if spec.ContainerID == "" {
		if spec.User != "" && !ours {
			return nil, "", fmt.Errorf("a user for a process outside containers: %w", ErrUnsupported)
		}
		params.CreateInUtilityVM = true
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
			params.OciProcess = process
		}
		return params, NullContainer, nil
	}
	params.OciProcess = process
	created, err := c.create(ctx, spec, process)
	if err != nil {
		return nil, "", err
	}
	if created && !ours {
		params.OciProcess = nil // other guests begin a container with the process of its document
	}
	return params, spec.ContainerID, nil
}

// create makes the container known to the guest; false when it was known.
func (c *Client) create(ctx context.Context, spec *vmm.ProcessSpec, process *specs.Process) (bool, error) {
	c.mu.Lock()
	root, ok := c.created[spec.ContainerID]
	c.mu.Unlock()
	if ok && root == spec.Root {
		return false, nil
	}
	hostname := spec.Hostname
	if hostname == "" {
		hostname = spec.ContainerID
	}
	config, err := EncodeText(ContainerConfig{
		SchemaVersion: Version{2, 1}, OciBundlePath: "/run/gcs/c/" + spec.ContainerID,
		OciSpecification: containerSpec(spec.Root, hostname, process),
	})
	if err != nil {
		return false, err
	}
	req := &CreateRequest{RequestBase: RequestBase{ContainerId: spec.ContainerID}, ContainerConfig: config,
		SupportedVersions: &SupportedVersions{MinimumVersion: "V3", MaximumVersion: "V3",
			MinimumProtocolVersion: ProtocolVersion, MaximumProtocolVersion: ProtocolVersion}}
	err = c.call(ctx, TypeCreate, req, &EmptyResponse{}, nil)
	exists := errors.Is(err, ErrExists)
	if err != nil && !exists {
		return false, err
	}
	c.mu.Lock()
	c.created[spec.ContainerID] = spec.Root
	c.mu.Unlock()
	return !exists, nil
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

func (c *Client) start(ctx context.Context, spec vmm.ProcessSpec, container string, params *ProcessParameters) (*Process, error) {
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
	req := &ExecuteRequest{RequestBase: RequestBase{ContainerId: container},
		Settings: ExecuteSettings{ProcessParameters: text, VsockStdioRelaySettings: &ports}}
	var resp ExecuteResponse
	kill := func(pid uint32) {
		tidy, cancel := context.WithTimeout(context.Background(), tidyTime)
		defer cancel()
		_ = c.call(tidy, TypeSignalProcess, &SignalRequest{RequestBase: RequestBase{ContainerId: container}, ProcessId: pid},
			&EmptyResponse{}, nil)
	}
	late := func(payload []byte) {
		var r ExecuteResponse
		if json.Unmarshal(payload, &r) == nil && r.Result == ResultOK {
			kill(r.ProcessId)
		}
	}
	if err := c.call(ctx, TypeExecuteProcess, req, &resp, late); err != nil {
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
			c.tidy(func() { kill(resp.ProcessId) })
			return nil, fmt.Errorf("the guest did not connect the streams: %w", err)
		}
	}
	p := &Process{c: c, container: container, pid: resp.ProcessId, done: make(chan struct{})}
	p.run(spec, streams.conns)
	return p, nil
}

// Process is a process in the guest. Its methods may be called concurrently.
type Process struct {
	c         *Client
	container string
	pid       uint32

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
	go func() {
		defer close(p.done)
		// The guest's answer is the exit; the bridge's end ends this too.
		p.code, p.err = p.c.WaitProcess(context.Background(), p.container, p.pid)
		if p.err != nil {
			p.closeStreams()
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
	return p.c.call(ctx, TypeResizeConsole, &ResizeRequest{RequestBase: RequestBase{ContainerId: p.container},
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
		return fmt.Errorf("close process %d: who reads its output takes no more: a write has blocked for %v", p.pid, closeTime)
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
	err := c.call(ctx, TypeWaitForProcess, &WaitRequest{RequestBase: RequestBase{ContainerId: orNull(container)},
		ProcessId: pid, TimeoutInMs: InfiniteTimeout}, &resp, nil)
	return int(int32(resp.ExitCode)), err
}

// SignalProcess sends a signal to any process the guest knows. One that has exited is no error.
func (c *Client) SignalProcess(ctx context.Context, container string, pid uint32, sig int) error {
	err := c.call(ctx, TypeSignalProcess, &SignalRequest{RequestBase: RequestBase{ContainerId: orNull(container)},
		ProcessId: pid, Options: &SignalOptions{sig}}, &EmptyResponse{}, nil)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

func orNull(container string) string {
	if container == "" {
		return NullContainer
	}
	return container
}
