package procs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// maxEnded bounds the exit codes that are kept for hosts that reconnect.
const maxEnded = 4096

// processes are the processes that hosts have started, including up to maxEnded that have ended. Their ids are not the
// kernel's PIDs, and are never reused.
type processes struct {
	mu    sync.Mutex
	next  uint32
	all   map[uint32]*process
	ended []uint32
}

// process is a process that a host has started.
type process struct {
	id        uint32
	container string // empty: the VM itself
	name      string

	exited chan struct{} // closed by finish
	once   sync.Once
	code   int
	memory atomic.Bool // see Table.OutOfMemory
	in     *instance   // its container's instance, once it runs

	mu     sync.Mutex
	kill   func(syscall.Signal) error // set once it runs
	master *os.File                   // of the terminal
}

func (ps *processes) add(p gcsserver.Process) *process {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.all == nil {
		ps.all, ps.next = map[uint32]*process{}, 1000
	}
	ps.next++
	pr := &process{id: ps.next, container: p.Container, name: p.Args[0], exited: make(chan struct{})}
	ps.all[pr.id] = pr
	return pr
}

func (ps *processes) remove(p *process) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.all, p.id)
}

func (ps *processes) get(container string, id uint32) (*process, error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.all[id]
	if p == nil || (p.container != container && container != "") {
		return nil, fmt.Errorf("process %d: %w", id, gcsserver.ErrNotFound)
	}
	return p, nil
}

// finish records the exit of a process. It is idempotent.
func (ps *processes) finish(p *process, code int) {
	p.once.Do(func() {
		p.code = code
		close(p.exited)
		ps.mu.Lock()
		defer ps.mu.Unlock()
		if ps.ended = append(ps.ended, p.id); len(ps.ended) > maxEnded {
			delete(ps.all, ps.ended[0])
			ps.ended = slices.Delete(ps.ended, 0, 1)
		}
	})
}

// running returns the processes of a container that have not ended; with all, those of all containers and the VM.
func (ps *processes) running(container string, all bool) []*process {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var out []*process
	for _, p := range ps.all {
		select {
		case <-p.exited:
		default:
			if all || p.container == container {
				out = append(out, p)
			}
		}
	}
	return out
}

func (p *process) started(kill func(syscall.Signal) error, master *os.File) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kill, p.master = kill, master
}

func (p *process) signal(sig int) error {
	if sig < 0 || sig > 64 {
		return fmt.Errorf("signal %d: %w", sig, gcsserver.ErrInvalid)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.exited:
		return fmt.Errorf("process %d has ended: %w", p.id, gcsserver.ErrNotFound)
	default:
	}
	if p.kill == nil {
		return fmt.Errorf("process %d has not started yet: %w", p.id, gcsserver.ErrNotFound)
	}
	return p.kill(syscall.Signal(sig))
}

func (p *process) resize(width, height uint16) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.master == nil {
		return fmt.Errorf("process %d has no terminal: %w", p.id, gcsserver.ErrInvalid)
	}
	return resizeTerminal(p.master, width, height)
}

// stdioPipes connect a process's streams to the host.
type stdioPipes struct {
	conns [3]net.Conn // to the host, or nil
	ours  [3]*os.File // the agent's ends of the pipes
	child [3]*os.File // the process's ends
}

// newPipes creates a pipe for each stream that is connected to the host.
func newPipes(conns [3]net.Conn) (*stdioPipes, error) {
	s := &stdioPipes{conns: conns}
	for i, c := range conns {
		if c == nil {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			s.close()
			return nil, err
		}
		if s.ours[i], s.child[i] = r, w; i == 0 {
			s.ours[i], s.child[i] = w, r
		}
	}
	return s, nil
}

func (s *stdioPipes) closeChild() {
	for _, f := range s.child {
		if f != nil {
			f.Close()
		}
	}
}

func (s *stdioPipes) close() {
	s.closeChild()
	for _, f := range s.ours {
		if f != nil {
			f.Close()
		}
	}
}

// useMaster replaces the pipes by a terminal's master.
func (s *stdioPipes) useMaster(master *os.File) {
	s.close()
	s.ours = [3]*os.File{master, master, nil}
}

// relay copies between the process and the host in the background. If the host disconnects, the process goes on and its
// output is discarded.
func (s *stdioPipes) relay(p *process, terminal bool) {
	if in, to := s.conns[0], s.ours[0]; in != nil && to != nil {
		go func() {
			_, _ = io.Copy(to, in)
			if !terminal {
				to.Close()
			}
			in.Close()
		}()
		go func() { // end the connection, even if the host keeps the input open
			<-p.exited
			_ = in.SetReadDeadline(time.Unix(1, 0))
		}()
	}
	var outputs sync.WaitGroup
	for i := 1; i < 3; i++ {
		if from := s.ours[i]; from != nil {
			outputs.Go(func() { relayOutput(s.conns[i], from, p.exited) })
		} else if s.conns[i] != nil {
			s.conns[i].Close()
		}
	}
	go func() {
		outputs.Wait()
		<-p.exited
		p.mu.Lock()
		p.master = nil
		p.mu.Unlock()
		for i := 1; i < 3; i++ {
			if s.ours[i] != nil {
				s.ours[i].Close()
			}
		}
	}()
}

// maxPipe is the maximum size of a pipe's buffer in bytes: so much may be unread when the process exits.
const maxPipe = 1 << 20

// relayOutput copies until EOF. After the process has exited, it copies what is left in the pipe and does not wait for
// more: children of the process may keep the pipe open for ever.
func relayOutput(to net.Conn, from *os.File, exited <-chan struct{}) {
	out := io.Writer(io.Discard)
	if to != nil {
		defer to.Close()
		out = to
	}
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-exited:
			_ = from.SetReadDeadline(time.Unix(1, 0))
		case <-stop:
		}
	}()
	buf := make([]byte, 32<<10)
	write := func(n int) {
		if _, err := out.Write(buf[:n]); err != nil {
			out = io.Discard
		}
	}
	for {
		n, err := from.Read(buf)
		write(n)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return
		}
	}
	_ = from.SetReadDeadline(time.Time{})
	raw, err := from.SyscallConn()
	if err != nil {
		return
	}
	for n, left := 1, maxPipe; n > 0 && left > 0; left -= n {
		if err := raw.Read(func(fd uintptr) bool {
			n, err = unix.Read(int(fd), buf)
			return true
		}); err != nil || n <= 0 {
			return
		}
		write(n)
	}
}

// pollable returns a duplicate of f whose reads support deadlines, and closes f.
func pollable(f *os.File) (*os.File, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// waitExit waits for the end of a process.
func waitExit(ctx context.Context, p *process) (int, error) {
	select {
	case <-p.exited:
		return p.code, nil
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for process %d: %w", p.id, context.Cause(ctx))
	}
}
