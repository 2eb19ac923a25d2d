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

// oneAtATime serializes writes to Stdout and Stderr if they are the same writer.
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

// tidyTime bounds the cleanup of a process whose start was abandoned.
const tidyTime = 30 * time.Second

// Exec starts a process. If ctx ends before the guest has responded, the process is killed if it starts nevertheless.
// ctx does not affect a process that was started.
//
// If Stdout and Stderr are the same writer, writes to it are serialized. With a terminal there is no separate Stderr. A
// read of spec.Stdin cannot be interrupted: one may outlive the process.
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

// exec starts a process, and creates its container in the guest if necessary. again is true if it failed because the
// container has ended or was deleted meanwhile, so that it can be retried.
func (c *Client) exec(ctx context.Context, spec *vmm.ProcessSpec) (p *Process, again bool, err error) {
	if spec.ContainerID == "" {
		params, err := c.inMachine(spec)
		if err == nil {
			p, err = c.start(ctx, *spec, params, nil)
		}
		return p, false, err
	}
	if spec.First && c.ours() {
		p, err := c.beginContainer(ctx, spec)
		return p, false, err
	}
	info, first, err := c.enter(ctx, spec)
	if err != nil {
		return nil, false, err
	}
	if spec.First && !first {
		return nil, false, fmt.Errorf("container %q has begun already: %w: %w", spec.ContainerID, ErrNotSent, vmm.ErrOccupied)
	}
	params := c.parameters(spec)
	if first {
		p, err := c.start(ctx, *spec, params, info) // the process is in the container's spec
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
		return nil, c.forget(spec.ContainerID, info), err // another client has deleted it
	case c.ours() || !info.first:
		return nil, false, err
	}
	// Other guests have no specific error for a stopped container; this failure may be the first sign of it.
	select {
	case <-info.stopped:
		return nil, true, err
	case <-time.After(stopNews):
	case <-ctx.Done():
	}
	return nil, false, err
}

// stopNews is how long after such a failure the end of the container's first process may still be reported.
const stopNews = 200 * time.Millisecond

// parameters returns the parameters that all processes have.
func (c *Client) parameters(spec *vmm.ProcessSpec) *ProcessParameters {
	return &ProcessParameters{
		EmulateConsole: spec.Terminal, CreateStdInPipe: spec.Stdin != nil,
		CreateStdOutPipe: spec.Stdout != nil, CreateStdErrPipe: spec.Stderr != nil,
		StrataMakeDir: spec.MakeDir && c.ours(),
	}
}

// inMachine returns the parameters of a process in the VM itself.
func (c *Client) inMachine(spec *vmm.ProcessSpec) (*ProcessParameters, error) {
	process := ociProcess(spec)
	params := c.parameters(spec)
	params.CreateInUtilityVM = true
	if c.ours() { // our agent needs nothing but OciProcess
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

// listen listens on a free port.
func (c *Client) listen() (net.Listener, uint32, error) {
	const tries = 1000 // other processes of this host may use ports
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

// start starts a process. If it is to be the first of its container, first is that container, which is discarded on
// error.
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
	// The guest dials before it responds, so the connections should be there by now.
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

// closeTime is how long Close waits for a blocked write to a writer of the ProcessSpec.
const closeTime = 10 * time.Second
