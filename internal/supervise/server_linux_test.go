package supervise

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/vmm"
)

// process is a program in memory: it ends by any signal but WINCH.
type process struct {
	spec vmm.ProcessSpec
	done chan struct{}

	mu      sync.Mutex
	code    int
	ended   bool
	signals []int
	size    string
	lost    func() error // what Signal does, if anything else
}

func newProcess(spec vmm.ProcessSpec) *process {
	return &process{spec: spec, done: make(chan struct{})}
}

func (p *process) Pid() uint32 { return 7 }

func (p *process) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.done:
		return p.code, nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

func (p *process) Signal(_ context.Context, sig int) error {
	p.mu.Lock()
	p.signals = append(p.signals, sig)
	lost := p.lost
	p.mu.Unlock()
	if lost != nil {
		return lost()
	}
	if sig != 28 {
		p.exit(128 + sig)
	}
	return nil
}

func (p *process) exit(code int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		p.ended, p.code = true, code
		close(p.done)
	}
}

func (p *process) Resize(_ context.Context, width, height uint16) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.size = fmt.Sprintf("%dx%d", width, height)
	return nil
}

func (p *process) Close() error { return nil }

// box is a server with a program, and its client.
type box struct {
	t      *testing.T
	dir    string
	server *Server
	main   *process
	client *Client
}

// exec runs "echo": its input to its output, then its environment, folder and user; any other program is not there.
func (b *box) exec(_ context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	if spec.Args[0] != "echo" {
		return nil, fmt.Errorf("program %q: %w", spec.Args[0], vmm.ErrProgramNotFound)
	}
	p := newProcess(spec)
	go func() {
		if spec.Stdin != nil {
			if _, err := io.Copy(spec.Stdout, spec.Stdin); err != nil {
				<-p.done
				return
			}
		}
		fmt.Fprintf(spec.Stderr, "%v %s %s", spec.Env, spec.Dir, spec.User)
		p.exit(3)
	}()
	return p, nil
}

func newBox(t *testing.T) *box {
	t.Helper()
	leaktest.Check(t)
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30)) // no name of a socket may be so long
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	b := &box{t: t, dir: dir, client: NewClient(dir), main: newProcess(vmm.ProcessSpec{})}
	var err error
	if b.server, err = Listen(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.server.Close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
	b.server.Started(Program{Process: b.main, Exec: b.exec,
		Base: vmm.ProcessSpec{Env: []string{"A=1"}, Dir: "/srv", User: "web"}})
	return b
}

func (b *box) dial() net.Conn {
	b.t.Helper()
	conn, err := dial(b.t.Context(), b.dir)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { conn.Close() })
	return conn
}

// safeBuffer is a buffer for several goroutines.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestAttach: a client gets all output from its answer on, its input arrives, and the end is told.
func TestAttach(t *testing.T) {
	b := newBox(t)
	var log bytes.Buffer
	out, errs := b.server.Output("stdout", &log), b.server.Output("stderr", nil)
	fmt.Fprint(out, "before ")
	var got, gotErr safeBuffer
	p, err := b.client.Attach(t.Context(), vmm.ProcessSpec{Stdin: strings.NewReader("hello"), Stdout: &got,
		Stderr: &gotErr})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	big := strings.Repeat("x", 3*maxFrame)
	fmt.Fprint(out, big)
	fmt.Fprint(errs, "bad")
	in := make([]byte, 5)
	if _, err := io.ReadFull(b.server.Input(), in); err != nil || string(in) != "hello" {
		t.Errorf("input %q, %v", in, err)
	}
	if err := errors.Join(p.Resize(t.Context(), 90, 30), p.Signal(t.Context(), 28)); err != nil {
		t.Error(err)
	}
	if err := p.Signal(t.Context(), 15); err != nil {
		t.Error(err)
	}
	<-b.main.done
	if want := []int{28, 15}; !slices.Equal(b.main.signals, want) || b.main.size != "90x30" {
		t.Errorf("signals %v, size %s", b.main.signals, b.main.size)
	}
	b.server.Finish(Exit{Code: 143})
	if code, err := p.Wait(t.Context()); code != 143 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
	if got.String() != big || gotErr.String() != "bad" || log.String() != "before "+big {
		t.Errorf("%d bytes, %q, log %d bytes", len(got.String()), gotErr.String(), log.Len())
	}
	if _, err := b.client.Attach(t.Context(), vmm.ProcessSpec{}); !errors.Is(err, ErrEnded) {
		t.Errorf("attached to what has ended: %v", err)
	}
}

// TestWaitAndSignal: waiting ends with the container, whatever is asked meanwhile.
func TestWaitAndSignal(t *testing.T) {
	b := newBox(t)
	got := make(chan Exit, 3)
	for range cap(got) {
		go func() {
			e, err := b.client.Wait(t.Context())
			if err != nil {
				t.Error(err)
			}
			got <- e
		}()
	}
	limited, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := b.client.Wait(limited); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waited in vain: %v", err)
	}
	for _, sig := range []int{0, -1, 65} {
		if err := b.client.Signal(t.Context(), sig); err == nil {
			t.Errorf("there is a signal %d", sig)
		}
	}
	if err := b.client.Signal(t.Context(), 9); err != nil {
		t.Error(err)
	}
	b.main.mu.Lock()
	b.main.lost = func() error { b.server.Ended(); return vmm.ErrGuestUnreachable } // as it hangs up with the program
	b.main.mu.Unlock()
	for range 2 {
		if err := b.client.Signal(t.Context(), 9); !errors.Is(err, ErrEnded) {
			t.Errorf("a signal to what has ended: %v", err)
		}
	}
	b.server.Finish(Exit{Code: 137, Error: "oh"})
	for range cap(got) {
		if e := <-got; e != (Exit{137, "oh"}) {
			t.Errorf("got %+v", e)
		}
	}
}

// TestExec: a program beside that of the container has its environment, folder and user.
func TestExec(t *testing.T) {
	b := newBox(t)
	var out, errs safeBuffer
	p, err := b.client.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"echo"}, Env: []string{"B=2"}, User: "root",
		Stdin: strings.NewReader("in"), Stdout: &out, Stderr: &errs})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if code, err := p.Wait(t.Context()); code != 3 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
	if out.String() != "in" || errs.String() != "[A=1 B=2] /srv root" {
		t.Errorf("output %q, %q", out.String(), errs.String())
	}
	_, err = b.client.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"none"}})
	if !errors.Is(err, vmm.ErrProgramNotFound) || !strings.Contains(err.Error(), `program "none"`) {
		t.Errorf("no such program: %v", err)
	}
	b.server.Ended()
	if _, err = b.client.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"echo"}}); !errors.Is(err, ErrEnded) {
		t.Errorf("beside what has ended: %v", err)
	}
}

// TestExecWithoutClient: a program whose client has gone is ended.
func TestExecWithoutClient(t *testing.T) {
	b := newBox(t)
	started := make(chan *process, 1)
	b.server.Started(Program{Process: b.main, Exec: func(_ context.Context, s vmm.ProcessSpec) (vmm.Process, error) {
		p := newProcess(s)
		started <- p
		return p, nil
	}})
	p, err := b.client.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"sleep"}, Stdout: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	other := <-started
	<-other.done
	if other.code != 129 { // HUP first
		t.Errorf("exit code %d", other.code)
	}
}

// TestHostileClients: whatever comes over the socket, the server goes on, and its output is not held up.
func TestHostileClients(t *testing.T) {
	b := newBox(t)
	b.server.hub.stall = 500 * time.Millisecond
	out := b.server.Output("stdout", nil)
	long := make([]byte, header)
	binary.BigEndian.PutUint32(long[1:], maxFrame+1)
	for _, first := range []string{"", "x", "{}\n", "\x00\n", `{"op":"fly"}` + "\n", `{"op":"signal","signal":999}` + "\n",
		`{"op":"exec"}` + "\n", `{"op":"attach"}` + "\n" + string(long), `{"op":"attach","stdin":true}` + "\n" +
			"\xff\xff\xff\xff\xff",
		strings.Repeat("[", 1<<20)} {
		conn := b.dial()
		if _, err := io.WriteString(conn, first); err != nil && !strings.Contains(err.Error(), "pipe") {
			t.Errorf("%.20q: %v", first, err)
		}
		if !strings.HasPrefix(first, "[") {
			_ = conn.Close()
		}
	}
	// Clients that are attached and read nothing are cut off.
	for range 3 {
		if _, err := io.WriteString(b.dial(), `{"op":"attach"}`+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	good, err := b.client.Attach(t.Context(), vmm.ProcessSpec{Stdout: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	defer good.Close()
	for range 100 {
		if _, err := out.Write(make([]byte, 64<<10)); err != nil {
			t.Fatal(err)
		}
	}
	// More clients than there may be: the others are turned away, and room is made when they go.
	var many []net.Conn
	for range maxClients + 10 {
		many = append(many, b.dial())
	}
	for _, c := range many {
		_ = c.Close()
	}
	for {
		if err := b.client.Signal(t.Context(), 28); err == nil {
			break
		}
		if t.Context().Err() != nil {
			t.Fatal("the server takes no more clients")
		}
	}
	b.server.Finish(Exit{})
	if code, err := good.Wait(t.Context()); code != 0 || err != nil {
		t.Errorf("the client that behaves: %d, %v", code, err)
	}
}

// TestNoSupervisor: calls fail where nobody listens, or what does is killed.
func TestNoSupervisor(t *testing.T) {
	dir := t.TempDir()
	c := NewClient(dir)
	if _, err := c.Wait(t.Context()); err == nil {
		t.Error("nobody is there, and it waits")
	}
	l, err := listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(filepath.Join(dir, socketName))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", fi, err)
	}
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_ = conn.Close()
		}
	}()
	if err := c.Signal(t.Context(), 15); err == nil || !strings.Contains(err.Error(), "supervisor") {
		t.Errorf("the supervisor was killed: %v", err)
	}
	if err := unlisten(dir, l); err != nil {
		t.Error(err)
	}
}
