package procs

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// StageName is the argv[0] by which this program knows that it is the first process of a container.
const StageName = "strata-container-init"

// Stage is to be called first thing in main with os.Args. When the program was started to be a stage
// of the agent it does that work and handled is true; the caller then exits with the code.
func Stage(args []string) (exit int, handled bool) {
	if len(args) == 0 || args[0] != StageName {
		return 0, false
	}
	if err := containerInit(); err != nil {
		return 1, true // whom it concerns has been told over the socket
	}
	return 0, true
}

// stageMessage is what the agent and the first process of a container say to each other.
type stageMessage struct {
	Kind    string // setup, exec, signal; ready, started, exit
	ID      uint32
	Setup   *stageSetup `json:",omitempty"`
	Command *command    `json:",omitempty"`
	Has     [3]bool     // which standard streams come with an exec
	Signal  int         `json:",omitempty"`
	Code    int         `json:",omitempty"`
	Last    bool        `json:",omitempty"`
	Error   string      `json:",omitempty"`
	Result  uint32      `json:",omitempty"` // the kind of the error
}

type stageSetup struct {
	Root      string
	Hostname  string
	Temporary []SystemMount `json:",omitempty"`
}

// stageConn carries stageMessages and the files that belong to them.
type stageConn struct{ *net.UnixConn }

func newStageConn(f *os.File) (stageConn, error) {
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return stageConn{}, err
	}
	return stageConn{c.(*net.UnixConn)}, nil
}

func (c stageConn) send(m stageMessage, files ...*os.File) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	b = append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...)
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	n, _, err := c.WriteMsgUnix(b, oob, nil)
	if err == nil && n < len(b) {
		_, err = c.Write(b[n:])
	}
	runtime.KeepAlive(files)
	return err
}

func (c stageConn) receive() (m stageMessage, files []*os.File, err error) {
	var size [4]byte
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, _, _, err := c.ReadMsgUnix(size[:], oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return m, nil, err
	}
	if _, err := io.ReadFull(c, size[n:]); err != nil {
		return m, nil, err
	}
	if cmsgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
		for i := range cmsgs {
			fds, err := unix.ParseUnixRights(&cmsgs[i])
			if err != nil {
				continue
			}
			for _, fd := range fds {
				unix.CloseOnExec(fd)
				files = append(files, os.NewFile(uintptr(fd), "stream"))
			}
		}
	}
	length := binary.LittleEndian.Uint32(size[:])
	if length > gcs.LargestMaxMessage {
		return m, files, gcsserver.ErrInvalid
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(c, body); err != nil {
		return m, files, err
	}
	return m, files, json.Unmarshal(body, &m)
}

// containerInit is PID 1 of a container's namespaces: it makes the root, starts what it is told to,
// collects the dead, and ends with its socket. When it ends the kernel kills what is left.
func containerInit() error {
	runtime.LockOSThread() // capabilities belong to a thread, and children inherit those of theirs
	conn, err := newStageConn(os.NewFile(3, "agent"))
	if err != nil {
		return err
	}
	m, _, err := conn.receive()
	if err != nil || m.Setup == nil {
		return errors.Join(err, gcsserver.ErrInvalid)
	}
	if err := enterRoot(*m.Setup); err != nil {
		_ = conn.send(stageMessage{Kind: "ready", Error: err.Error(), Result: uint32(gcsserver.ResultOf(err))})
		return err
	}
	sp := NewSpawner(true)
	sp.orphan = func(last bool) {
		if last {
			_ = conn.send(stageMessage{Kind: "exit", Last: true})
		}
	}
	if err := conn.send(stageMessage{Kind: "ready"}); err != nil {
		return err
	}
	running := stageProcesses{pids: map[uint32]int{}}
	for {
		m, files, err := conn.receive()
		if err != nil {
			return nil // the agent has let go
		}
		switch m.Kind {
		case "exec":
			running.exec(sp, conn, m, files)
		case "idle?":
			sp.tellIfIdle()
		case "signal":
			running.signal(sp, m.ID, syscall.Signal(m.Signal))
		}
	}
}

// stageProcesses belongs to the goroutine that reads messages.
type stageProcesses struct{ pids map[uint32]int }

func (p *stageProcesses) exec(sp *Spawner, conn stageConn, m stageMessage, files []*os.File) {
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	var streams [3]*os.File
	next := 0
	for i, has := range m.Has {
		if has && next < len(files) {
			streams[i] = files[next]
			next++
		}
	}
	// The exit must not be told before the start was.
	told := make(chan struct{})
	pid, master, err := sp.execute(*m.Command, streams, func(st syscall.WaitStatus, last bool) {
		<-told
		_ = conn.send(stageMessage{Kind: "exit", ID: m.ID, Code: exitCode(st), Last: last})
	})
	reply := stageMessage{Kind: "started", ID: m.ID}
	if err != nil {
		reply.Error, reply.Result = err.Error(), uint32(gcsserver.ResultOf(err))
	} else {
		p.pids[m.ID] = pid
	}
	if master != nil {
		_ = conn.send(reply, master)
		master.Close()
	} else {
		_ = conn.send(reply)
	}
	close(told)
}

func (p *stageProcesses) signal(sp *Spawner, id uint32, sig syscall.Signal) {
	pid, ok := p.pids[id]
	if !ok {
		return
	}
	if err := sp.signal(pid, sig); errors.Is(err, gcsserver.ErrNotFound) {
		delete(p.pids, id)
	}
}

// enterRoot makes the root of a mount the root of this process, with the file systems every
// container has. It is called in a mount namespace of its own.
func enterRoot(s stageSetup) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	b := borrow()
	defer b.close()
	if err := os.Chdir(s.Root); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("make %s the root (is it a mount?): %w", s.Root, err)
	}
	// This is a copy of the agent's mounts, nobody else's: it may go at once.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the guest's root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("set the host name %q: %w", s.Hostname, err)
	}
	if err := mountSystem(b, s.Temporary); err != nil {
		return err
	}
	RaiseLimits()
	return dropCapabilities()
}
