package supervise

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/vmm"
)

// Client talks to the supervisor of the container in a directory.
type Client struct {
	dir      string
	patience time.Duration // timeout of requests other than wait
}

// answerTime is the timeout of a response: longer than the supervisor's own.
const answerTime = 2 * requestTime

// errSilent: the supervisor exists but does not respond.
var errSilent = errors.New("the container's supervisor does not answer: strata inspect names its process, " +
	"which may be stopped (kill -CONT lets it go on), and can be killed: its container ends then")

// NewClient returns a client. It does not connect: each call does.
func NewClient(dir string) *Client { return &Client{dir: dir, patience: answerTime} }

// ask sends a request and returns the response and the connection. A wait has no timeout other than ctx.
func (c *Client) ask(ctx context.Context, r request) (conn net.Conn, a answer, err error) {
	if r.Op != "wait" {
		limit := c.patience
		if r.Op == "exec" {
			limit += execTime
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, errSilent)
		defer cancel()
	}
	conn, err = dial(ctx, c.dir)
	if err != nil {
		if ctx.Err() != nil { // it does not accept connections
			err = context.Cause(ctx)
		}
		return nil, a, fmt.Errorf("reach the container's supervisor: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err = writeJSON(conn, r)
	if err == nil {
		err = readJSON(conn, &a)
	}
	if !stop() && ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if err != nil {
		err = fmt.Errorf("the container's supervisor has gone: %w", err)
	} else {
		err = a.err()
	}
	if err != nil {
		return nil, a, errors.Join(err, conn.Close())
	}
	return conn, a, nil
}

// Signal sends a signal to the program, by its Linux number.
func (c *Client) Signal(ctx context.Context, sig int) error {
	return c.tell(ctx, request{Op: "signal", Signal: sig})
}

// Pause stops all processes of the container until Resume. If it is paused already the error matches vmm.ErrPaused.
func (c *Client) Pause(ctx context.Context) error { return c.tell(ctx, request{Op: "pause"}) }

// Resume resumes the container. If it is not paused the error matches vmm.ErrNotPaused.
func (c *Client) Resume(ctx context.Context) error { return c.tell(ctx, request{Op: "resume"}) }

// Update changes those limits of the container that are set in r.
func (c *Client) Update(ctx context.Context, r specs.LinuxResources) error {
	return c.tell(ctx, request{Op: "update", Limits: &r})
}

// tell sends a request whose response has nothing but an error.
func (c *Client) tell(ctx context.Context, r request) error {
	conn, _, err := c.ask(ctx, r)
	if err != nil {
		return err
	}
	return conn.Close()
}

// Wait waits until the container has ended.
func (c *Client) Wait(ctx context.Context) (Exit, error) {
	conn, a, err := c.ask(ctx, request{Op: "wait"})
	if err != nil {
		return Exit{}, err
	}
	if a.Exit == nil {
		return Exit{}, errors.Join(errFrame, conn.Close())
	}
	return *a.Exit, conn.Close()
}

// Stats returns the resource usage of the container.
func (c *Client) Stats(ctx context.Context) (vmm.ContainerStats, error) {
	conn, a, err := c.ask(ctx, request{Op: "stats"})
	if err != nil {
		return vmm.ContainerStats{}, err
	}
	if a.Stats == nil {
		return vmm.ContainerStats{}, errors.Join(errFrame, conn.Close())
	}
	return *a.Stats, conn.Close()
}

// Exec starts an exec process in the container. Only the fields of spec about the process itself are used: Env is added
// to the container's environment; Dir and User default to the container's.
func (c *Client) Exec(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	r := executeOf(spec)
	r.Stdin, r.Stdout, r.Stderr = spec.Stdin != nil, spec.Stdout != nil, spec.Stderr != nil
	conn, a, err := c.ask(ctx, request{Op: "exec", Exec: r})
	if err != nil {
		return nil, err
	}
	return newSession(conn, a.Pid, spec), nil
}

// Leave is Exec in the background: output is discarded, and the program is not ended with the client. It ends with the
// container at the latest.
func (c *Client) Leave(ctx context.Context, spec vmm.ProcessSpec) error {
	r := executeOf(spec)
	r.Leave = true
	return c.tell(ctx, request{Op: "exec", Exec: r})
}

func executeOf(spec vmm.ProcessSpec) execute {
	return execute{Args: spec.Args, Env: spec.Env, Dir: spec.Dir, User: spec.User, Terminal: spec.Terminal,
		Width: spec.Width, Height: spec.Height}
}

// Attach connects the streams of spec to the container's program: its output from now on, and its input if spec.Stdin
// is set. Closing the returned process disconnects and does not end the program.
func (c *Client) Attach(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	conn, a, err := c.ask(ctx, request{Op: "attach", Stdin: spec.Stdin != nil})
	if err != nil {
		return nil, err
	}
	return newSession(conn, a.Pid, spec), nil
}

// session is a process at the other end of a connection.
type session struct {
	conn net.Conn
	pid  uint32
	done chan struct{}
	code int
	err  error
	mu   sync.Mutex // of writes

	room chan struct{} // signals that away has decreased
	away atomic.Int64  // bytes of input that were sent and not acknowledged yet
}

func newSession(conn net.Conn, pid uint32, spec vmm.ProcessSpec) *session {
	s := &session{conn: conn, pid: pid, done: make(chan struct{}), room: make(chan struct{}, 1)}
	if spec.Stdin != nil {
		go s.send(spec.Stdin)
	}
	go s.receive(spec.Stdout, spec.Stderr)
	return s
}

// send sends the input until EOF or the end of the session. It does not close from.
func (s *session) send(from io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && (!s.hasRoom(n) || s.frame(kindStdin, buf[:n]) != nil) {
			return
		}
		if err != nil {
			_ = s.frame(kindNoMoreStdin, nil)
			return
		}
	}
}

// hasRoom blocks until n bytes of input may be sent. It returns false if the session has ended.
func (s *session) hasRoom(n int) bool {
	for s.away.Load()+int64(n) > maxInput {
		select {
		case <-s.room:
		case <-s.done:
			return false
		}
	}
	s.away.Add(int64(n))
	return true
}

// frame writes a frame. It does not block for long, because the supervisor reads continuously.
func (s *session) frame(k kind, b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.conn.SetWriteDeadline(time.Now().Add(answerTime))
	return writeFrames(s.conn, k, b)
}

// errCut: the connection was closed before the program ended.
var errCut = errors.New("the connection to the container's supervisor has ended: it was killed, or the output was " +
	"not taken for too long; strata ps shows whether the container runs")

func (s *session) receive(stdout, stderr io.Writer) {
	defer close(s.done)
	r, buf := bufio.NewReaderSize(s.conn, maxFrame), make([]byte, maxFrame)
	for {
		k, b, err := readFrame(r, buf)
		if err != nil {
			s.err = errCut
			return
		}
		to := stdout
		switch k {
		case kindTaken:
			if len(b) == 4 {
				s.away.Add(-int64(binary.BigEndian.Uint32(b)))
				select {
				case s.room <- struct{}{}:
				default:
				}
			}
			continue
		case kindStderr:
			to = stderr
		case kindExit:
			var e Exit
			if err := json.Unmarshal(b, &e); err != nil {
				s.err = errFrame
			} else if s.code = e.Code; e.Error != "" {
				s.err = errors.New(e.Error)
			}
			return
		}
		if to != nil {
			if _, err := to.Write(b); err != nil {
				to, stdout, stderr = nil, nil, nil // discard the rest: the program goes on
			}
		}
	}
}

// Pid implements vmm.Process.
func (s *session) Pid() uint32 { return s.pid }

// Wait implements vmm.Process.
func (s *session) Wait(ctx context.Context) (int, error) {
	select {
	case <-s.done:
		return s.code, s.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// Signal implements vmm.Process.
func (s *session) Signal(_ context.Context, sig int) error {
	if sig < 1 || sig > 64 {
		return fmt.Errorf("there is no signal %d", sig)
	}
	return s.ended(s.frame(kindSignal, []byte{byte(sig)}))
}

// Resize implements vmm.Process.
func (s *session) Resize(_ context.Context, width, height uint16) error {
	b, err := json.Marshal(size{width, height})
	if err != nil {
		return err
	}
	return s.ended(s.frame(kindResize, b))
}

// ended returns nil instead of err if the program has ended.
func (s *session) ended(err error) error {
	select {
	case <-s.done:
		return nil
	default:
		return err
	}
}

// Close implements vmm.Process.
func (s *session) Close() error {
	err := s.conn.Close()
	<-s.done
	return err
}
