package supervise

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

const (
	// maxClients bounds the connections at a time.
	maxClients = 128
	// requestTime is the timeout of reading a request and responding to it.
	requestTime = 10 * time.Second
	// stallTime is how long the program's output may block on a client that does not read.
	stallTime = 10 * time.Second
)

// Program is the running program of a container.
type Program struct {
	// Process is the program itself.
	Process vmm.Process
	// Exec starts an exec process in the container.
	Exec func(context.Context, vmm.ProcessSpec) (vmm.Process, error)
	// Stats returns the resource usage of the container; nil if that is not supported.
	Stats func(context.Context) (vmm.ContainerStats, error)
	// Control pauses and updates the container; nil if that is not supported.
	Control vmm.ContainerController
	// Base is the spec of the program, whose environment, directory and user are the defaults of exec processes.
	Base vmm.ProcessSpec
}

// Server serves the control socket of a container. [Listen] creates it; the caller reports the program's start and end
// by Started, Ended and Finish, and must call Close.
type Server struct {
	dir   string
	l     *net.UnixListener // nil if the system has no such sockets
	ctx   context.Context
	stop  context.CancelFunc
	conns sync.WaitGroup
	slots chan struct{}

	input  chan []byte // of the program
	closed chan struct{}

	hub hub

	mu      sync.Mutex
	program *Program      // while it runs
	done    chan struct{} // closed by Finish
	exit    Exit
	all     map[net.Conn]bool
}

// Listen creates the control socket in a directory and serves it. On systems without such sockets the server cannot be
// reached, but works otherwise.
func Listen(dir string) (*Server, error) {
	s := &Server{dir: dir, slots: make(chan struct{}, maxClients), done: make(chan struct{}), all: map[net.Conn]bool{},
		input: make(chan []byte), closed: make(chan struct{})}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.hub.stall = stallTime
	l, err := listen(dir)
	if errors.Is(err, errors.ErrUnsupported) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the control socket of the container: %w", err)
	}
	s.l = l
	s.conns.Go(s.accept)
	return s, nil
}

// Input returns the input of attached clients, for the program to read. It does not end before Close.
func (s *Server) Input() io.Reader { return &inputReader{from: s.input, over: s.closed} }

// Output returns the writer for a stream of the program, "stdout" or "stderr". It writes to to first, such as the log,
// unless that is nil, and then to attached clients.
func (s *Server) Output(stream string, to io.Writer) io.Writer {
	k := kindStdout
	if stream == "stderr" {
		k = kindStderr
	}
	return &output{hub: &s.hub, kind: k, to: to}
}

// Started reports that the program runs.
func (s *Server) Started(p Program) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.program = &p
}

// Ended reports that the program has ended.
func (s *Server) Ended() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.program = nil
}

// Finish reports that the container has ended, and wakes clients that wait for it.
func (s *Server) Finish(e Exit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.program, s.exit = nil, e
	select {
	case <-s.done:
	default:
		close(s.done)
	}
}

// Close closes the server and its connections. After Finish, waiting clients get their response first.
func (s *Server) Close() error {
	var err error
	if s.l != nil {
		err = unlisten(s.dir, s.l)
	}
	close(s.closed)
	over := make(chan struct{})
	go func() { s.conns.Wait(); close(over) }()
	select {
	case <-s.done: // clients end by themselves
		t := time.NewTimer(requestTime)
		defer t.Stop()
		select {
		case <-over:
		case <-t.C:
		}
	default:
	}
	s.stop()
	s.mu.Lock()
	for c := range s.all {
		_ = c.Close()
	}
	s.mu.Unlock()
	<-over
	return err
}

func (s *Server) accept() {
	for {
		conn, err := s.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // such as EMFILE
			select {
			case <-time.After(100 * time.Millisecond):
			case <-s.ctx.Done():
				return
			}
			continue
		}
		select {
		case s.slots <- struct{}{}:
		default:
			_ = conn.Close() // too many
			continue
		}
		s.mu.Lock()
		s.all[conn] = true
		s.mu.Unlock()
		s.conns.Go(func() {
			defer func() {
				_ = conn.Close()
				s.mu.Lock()
				delete(s.all, conn)
				s.mu.Unlock()
				<-s.slots
			}()
			s.serve(conn)
		})
	}
}

// running returns the program, or an error if it does not run.
func (s *Server) running() (Program, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.program == nil {
		return Program{}, ErrEnded
	}
	return *s.program, nil
}

// meanwhile returns ErrEnded instead of err if the program has ended meanwhile.
func (s *Server) meanwhile(err error) error {
	if err == nil {
		return nil
	}
	if _, ended := s.running(); ended != nil {
		return ended
	}
	return err
}

// serve serves one connection.
func (s *Server) serve(conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(requestTime))
	var r request
	if err := readJSON(conn, &r); err != nil {
		return
	}
	_ = conn.SetDeadline(time.Time{})
	switch r.Op {
	case "signal":
		s.reply(conn, s.signal(r.Signal))
	case "wait":
		s.wait(conn)
	case "attach":
		s.attach(conn, r.Stdin)
	case "stats":
		s.stats(conn)
	case "exec":
		s.exec(conn, r.Exec)
	case "pause", "resume", "update":
		s.reply(conn, s.change(r))
	default:
		s.reply(conn, unknown(r.Op))
	}
}

func (s *Server) reply(conn net.Conn, err error) {
	a := answer{}
	if err != nil {
		a = failed(err)
	}
	_ = conn.SetWriteDeadline(time.Now().Add(requestTime))
	_ = writeJSON(conn, a) // the client may have disconnected
	_ = conn.SetWriteDeadline(time.Time{})
}

func (s *Server) signal(sig int) error {
	if sig < 1 || sig > 64 {
		return fmt.Errorf("there is no signal %d", sig)
	}
	p, err := s.running()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.ctx, requestTime)
	defer cancel()
	return s.meanwhile(p.Process.Signal(ctx, sig))
}

// change pauses, resumes or updates the container.
func (s *Server) change(r request) error {
	p, err := s.running()
	if err != nil {
		return err
	}
	if p.Control == nil {
		return fmt.Errorf("%s of the container: %w", r.Op, errors.ErrUnsupported)
	}
	ctx, cancel := context.WithTimeout(s.ctx, requestTime)
	defer cancel()
	switch id := p.Base.ContainerID; {
	case r.Op == "pause":
		return s.meanwhile(p.Control.PauseContainer(ctx, id))
	case r.Op == "resume":
		return s.meanwhile(p.Control.ResumeContainer(ctx, id))
	case r.Limits == nil:
		return errFrame
	default:
		return s.meanwhile(p.Control.UpdateContainer(ctx, id, *r.Limits))
	}
}

// stats sends the resource usage of the container.
func (s *Server) stats(conn net.Conn) {
	p, err := s.running()
	if err == nil && p.Stats == nil {
		err = fmt.Errorf("statistics of the container: %w", errors.ErrUnsupported)
	}
	var stats vmm.ContainerStats
	if err == nil {
		ctx, cancel := context.WithTimeout(s.ctx, requestTime)
		defer cancel()
		stats, err = p.Stats(ctx)
		err = s.meanwhile(err)
	}
	if err != nil {
		s.reply(conn, err)
		return
	}
	_ = conn.SetWriteDeadline(time.Now().Add(requestTime))
	_ = writeJSON(conn, answer{Stats: &stats})
}

// wait responds when the container has ended.
func (s *Server) wait(conn net.Conn) {
	left := make(chan struct{})
	go func() { // the client sends nothing more: a read returns when it disconnects
		_, _ = conn.Read(make([]byte, 1))
		close(left)
	}()
	select {
	case <-s.done:
		_ = conn.SetWriteDeadline(time.Now().Add(requestTime))
		_ = writeJSON(conn, answer{Exit: &s.exit})
	case <-left:
	case <-s.ctx.Done():
	}
}
