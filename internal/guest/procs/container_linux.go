package procs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// container is a root and what runs in it. The namespaces live as long as a process is in them; the
// next process gets new ones.
type container struct {
	id, root, hostname string
	temporary          []SystemMount      // file systems in memory that its document asks for
	first              *gcsserver.Process // of its document, or nil
	doc                *specs.Spec        // a whole one, or nil

	mu   sync.Mutex // held while processes are started or all are stopped
	init namespaces // nil: none

	life containerLife
	// ended is closed when the first process of the document and all others have ended, or when the
	// container is deleted.
	ended chan struct{}
}

// namespaces are those of a container while a process is in them.
type namespaces interface {
	// exec starts a process. The error is errEnding when the namespaces are about to go.
	exec(p *process, cmd command, pipes *stdioPipes) (*os.File, error)
	end()                  // kills all processes, without waiting
	ending() bool          // they are about to go
	over() <-chan struct{} // closed once they are gone
}

// gone waits for namespaces that are on their way out, not for ever: a process may hang in the kernel.
func gone(n namespaces) bool {
	select {
	case <-n.over():
		return true
	case <-time.After(waitTime):
		return false
	}
}

// newNamespaces creates namespaces.
func (c *container) newNamespaces(t *Table) (namespaces, error) {
	if t.crun != nil {
		return newInstance(t, c)
	}
	return startContainer(t, c)
}

// containerProcess is the first process of a container's namespaces, as the agent sees it.
type containerProcess struct {
	conn   stageConn
	procs  *processes
	log    *slog.Logger
	exited chan struct{}

	mu      sync.Mutex // also held for each write to conn
	closing bool
	pending map[uint32]chan startReply
	running map[uint32]*process
}

type startReply struct {
	master *os.File
	err    error
}

// errEnding: the namespaces are about to go; new ones are needed.
var errEnding = errors.New("the container's last process has just ended")

// exec starts a process in the container.
func (c *container) exec(t *Table, p *process, cmd command, pipes *stdioPipes) (*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if c.init == nil {
			init, err := c.newNamespaces(t)
			if err != nil {
				return nil, err
			}
			c.init = init
		}
		master, err := c.init.exec(p, cmd, pipes)
		if !errors.Is(err, errEnding) {
			return master, err
		}
		if !gone(c.init) {
			return nil, fmt.Errorf("container %s: what ran last in it does not end: %w", c.id, gcsserver.ErrBusy)
		}
		c.init = nil
	}
}

// stop kills whatever runs in the container and waits until its namespaces are gone.
func (c *container) stop(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.init == nil {
		return nil
	}
	c.init.end()
	select {
	case <-c.init.over():
		c.init = nil
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container %s: its processes do not end: %w", c.id, context.Cause(ctx))
	}
}

// settle waits for namespaces that are on their way out, so that they do not hold mounts any more. It
// reports whether something runs in the container.
func (c *container) settle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.init == nil {
		return false
	}
	ended := false
	if c.init.ending() {
		ended = gone(c.init)
	} else {
		select {
		case <-c.init.over():
			ended = true
		default:
		}
	}
	if ended {
		c.init = nil
	}
	return !ended
}

func startContainer(t *Table, c *container) (*containerProcess, error) {
	root, err := openRoot(c.root)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.id, err)
	}
	err = root.checkSystemDirs()
	root.close()
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.id, err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "stage")
	defer theirs.Close()
	conn, err := newStageConn(os.NewFile(uintptr(pair[0]), "agent"))
	if err != nil {
		return nil, err
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		conn.Close()
		return nil, err
	}
	defer null.Close()

	// The new namespace begins with a copy of all mounts. Until it has released them nothing can be
	// unmounted for good.
	release, err := t.roots.Hold(c.root)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("container %s: %w", c.id, err)
	}
	defer release()
	ip := &containerProcess{conn: conn, procs: &t.procs, log: t.log, exited: make(chan struct{}),
		pending: map[uint32]chan startReply{}, running: map[uint32]*process{}}
	_, err = t.spawn.start(t.self, []string{StageName}, &syscall.ProcAttr{
		Dir: "/", Env: []string{"PATH=" + defaultPath, "GOMAXPROCS=2"},
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), theirs.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true,
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC},
	}, func(syscall.WaitStatus, bool) { close(ip.exited) })
	theirs.Close()
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("make the container's namespaces: %w", err)
	}
	_ = conn.SetDeadline(time.Now().Add(waitTime)) // nothing can be unmounted meanwhile
	err = conn.send(stageMessage{Kind: "setup", Setup: &stageSetup{Root: c.root, Hostname: c.hostname, Temporary: c.temporary}})
	var m stageMessage
	if err == nil {
		m, _, err = conn.receive()
	}
	if err == nil && m.Error != "" {
		err = remoteError(m)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		gone(ip)
		return nil, fmt.Errorf("container %s: %w", c.id, err)
	}
	go ip.listen()
	return ip, nil
}

// remoteError is an error of the stage, of the same kind as there.
func remoteError(m stageMessage) error {
	if err := gcsserver.ErrorOf(gcs.HRESULT(m.Result)); err != nil {
		return fmt.Errorf("%s%w", m.Error, silent{err})
	}
	return errors.New(m.Error)
}

// silent is an error whose words have been said already.
type silent struct{ error }

func (silent) Error() string   { return "" }
func (s silent) Unwrap() error { return s.error }

func (ip *containerProcess) exec(p *process, cmd command, pipes *stdioPipes) (*os.File, error) {
	m := stageMessage{Kind: "exec", ID: p.id, Command: &cmd}
	var files []*os.File
	for i, f := range pipes.child {
		if m.Has[i] = f != nil; m.Has[i] {
			files = append(files, f)
		}
	}
	reply := make(chan startReply, 1)
	ip.mu.Lock()
	if ip.closing {
		ip.mu.Unlock()
		return nil, errEnding
	}
	ip.pending[p.id] = reply
	ip.running[p.id] = p
	err := ip.conn.send(m, files...)
	if err != nil {
		delete(ip.pending, p.id)
		delete(ip.running, p.id)
		ip.closing = true
		ip.conn.Close()
	}
	ip.mu.Unlock()
	if err != nil {
		return nil, errEnding
	}
	r := <-reply
	if r.err != nil {
		return nil, r.err
	}
	p.started(func(sig syscall.Signal) error {
		ip.mu.Lock()
		defer ip.mu.Unlock()
		return ip.conn.send(stageMessage{Kind: "signal", ID: p.id, Signal: int(sig)})
	}, r.master)
	return r.master, nil
}

func (ip *containerProcess) over() <-chan struct{} { return ip.exited }

func (ip *containerProcess) ending() bool {
	ip.mu.Lock()
	defer ip.mu.Unlock()
	return ip.closing
}

// end lets the first process go, and with it all others.
func (ip *containerProcess) end() {
	ip.mu.Lock()
	defer ip.mu.Unlock()
	ip.closing = true
	ip.conn.Close()
}

func (ip *containerProcess) listen() {
	for {
		m, files, err := ip.conn.receive()
		if err != nil {
			break
		}
		switch m.Kind {
		case "started":
			ip.replyStarted(m, files)
		case "exit":
			ip.handleExit(m)
		}
	}
	// Nothing of the container runs once its first process is gone.
	<-ip.exited
	ip.mu.Lock()
	ip.closing = true
	pending, running := ip.pending, ip.running
	ip.pending, ip.running = nil, nil
	ip.mu.Unlock()
	ip.conn.Close()
	for id, reply := range pending {
		delete(running, id)
		reply <- startReply{err: errors.New("the container ended before the process started")}
	}
	for _, p := range running {
		ip.procs.finish(p, 128+int(syscall.SIGKILL))
	}
}

func (ip *containerProcess) replyStarted(m stageMessage, files []*os.File) {
	var r startReply
	if m.Error != "" {
		r.err = remoteError(m)
	}
	for _, f := range files {
		if master, err := pollable(f); err == nil && r.master == nil {
			r.master = master
		}
	}
	ip.mu.Lock()
	defer ip.mu.Unlock()
	if reply := ip.pending[m.ID]; reply != nil {
		delete(ip.pending, m.ID)
		reply <- r
	}
	if r.err != nil {
		delete(ip.running, m.ID)
		if len(ip.running) == 0 { // perhaps nothing else runs: the first process would stay for ever
			_ = ip.conn.send(stageMessage{Kind: "idle?"})
		}
	}
}

// handleExit notes the end of a process. With the last one the namespaces go first, so that whoever
// hears of it can unmount the root.
func (ip *containerProcess) handleExit(m stageMessage) {
	ip.mu.Lock()
	p := ip.running[m.ID]
	delete(ip.running, m.ID)
	if m.Last && len(ip.running) == 0 {
		ip.closing = true
		ip.conn.Close()
	}
	closing := ip.closing
	ip.mu.Unlock()
	if p == nil {
		return
	}
	if closing {
		<-ip.exited
	}
	ip.procs.finish(p, m.Code)
}
