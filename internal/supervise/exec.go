package supervise

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/stratavm/strata/vmm"
)

// execTime bounds the start of a program.
const execTime = time.Minute

// endTime is how long a program whose client has disconnected has to end before it is killed.
const endTime = 10 * time.Second

// frames writes the streams of one program to its client.
type frames struct {
	mu   sync.Mutex
	conn net.Conn
}

type frameWriter struct {
	f *frames
	k kind
}

func (w frameWriter) Write(b []byte) (int, error) {
	w.f.mu.Lock()
	defer w.f.mu.Unlock()
	if err := writeFrames(w.f.conn, w.k, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// exec runs an exec process for a client. If the client disconnects, the process is ended, unless r.Leave is set.
func (s *Server) exec(conn net.Conn, r execute) {
	program, err := s.running()
	if err == nil && len(r.Args) == 0 {
		err = errors.New("no program is given")
	}
	if err != nil {
		s.reply(conn, err)
		return
	}
	out := &frames{conn: conn}
	spec := beside(program.Base, r)
	input, over := make(chan []byte), make(chan struct{})
	if r.Stdin {
		spec.Stdin = &inputReader{from: input, over: over}
	}
	defer close(over)
	if r.Terminal {
		spec.Stdout = io.Discard
	}
	if r.Stdout {
		spec.Stdout = frameWriter{out, kindStdout}
	}
	if r.Stderr && !r.Terminal {
		spec.Stderr = frameWriter{out, kindStderr}
	}
	out.mu.Lock() // no output before the response
	ctx, cancel := context.WithTimeout(s.ctx, execTime)
	defer cancel()
	p, err := program.Exec(ctx, spec)
	if err != nil {
		s.reply(conn, s.meanwhile(err))
	} else {
		_ = conn.SetWriteDeadline(time.Now().Add(requestTime))
		_ = writeJSON(conn, answer{Pid: p.Pid()})
		_ = conn.SetWriteDeadline(time.Time{})
	}
	out.mu.Unlock()
	if err != nil {
		return
	}
	if r.Leave { // in the background, to free the connection
		s.conns.Go(func() {
			_, _ = p.Wait(s.ctx) // the result is not needed
			_ = p.Close()
		})
		return
	}
	s.relay(conn, out, p, input)
}

// relay connects a program to its client until the program ends.
func (s *Server) relay(conn net.Conn, out *frames, p vmm.Process, input chan<- []byte) {
	ended, left := make(chan struct{}), make(chan struct{})
	var streams sync.WaitGroup
	flow := newInflow()
	streams.Go(func() {
		s.hear(conn, p, flow)
		close(left)
	})
	streams.Go(func() {
		flow.pump(input, left, func(n int) { _, _ = frameWriter{out, kindTaken}.Write(count(n)) })
		close(input)
	})
	streams.Go(func() {
		select {
		case <-ended:
			return
		case <-left:
		}
		_ = conn.Close() // output is discarded
		s.endProcess(p, ended)
	})
	code, err := p.Wait(s.ctx)
	close(ended)
	e := Exit{Code: code}
	if err != nil {
		e.Code, e.Error = 255, err.Error()
	}
	_ = p.Close()
	out.mu.Lock()
	s.tell(conn, e)
	out.mu.Unlock()
	_ = conn.Close()
	streams.Wait()
}

// endProcess sends a program SIGHUP, SIGTERM and finally SIGKILL until it ends.
func (s *Server) endProcess(p vmm.Process, ended <-chan struct{}) {
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM, syscall.SIGKILL} {
		ctx, cancel := context.WithTimeout(s.ctx, endTime)
		_ = p.Signal(ctx, int(sig)) // it may have ended
		cancel()
		t := time.NewTimer(endTime / 2)
		select {
		case <-ended:
			t.Stop()
			return
		case <-s.ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// hear handles what the client of a program sends.
func (s *Server) hear(conn net.Conn, p vmm.Process, flow *inflow) {
	buf := make([]byte, maxFrame)
	for {
		k, b, err := readFrame(conn, buf)
		switch {
		case err != nil:
			return
		case k == kindStdin:
			if !flow.put(b) {
				return
			}
		case k == kindNoMoreStdin:
			flow.end()
		default:
			s.control(p, k, b)
		}
	}
}

// beside returns the spec of an exec process; base is that of the container's program.
func beside(base vmm.ProcessSpec, r execute) vmm.ProcessSpec {
	s := vmm.ProcessSpec{ContainerID: base.ContainerID, Root: base.Root, Hostname: base.Hostname, Args: r.Args,
		Env: slices.Concat(base.Env, r.Env), Dir: base.Dir, User: base.User,
		Terminal: r.Terminal, Width: r.Width, Height: r.Height}
	if r.Dir != "" {
		s.Dir = r.Dir
	}
	if r.User != "" {
		s.User = r.User
	}
	return s
}
