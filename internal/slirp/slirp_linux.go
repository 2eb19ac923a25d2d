package slirp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/vmm"
)

// startTime bounds the start of a server.
const startTime = 10 * time.Second

// Names of the server's sockets in its folder.
const (
	packetSocket  = "packets"
	requestSocket = "requests"
)

// Start starts a server and forwards all ports. A port that is not available is an error with the reason. On error
// everything is undone but the directory.
func Start(ctx context.Context, c Config) (_ *Server, err error) {
	program, err := Find()
	if err != nil {
		return nil, err
	}
	if err := PortsFree(ctx, c.Ports); err != nil {
		return nil, err
	}
	if c.UID != 0 {
		if err := os.Chown(c.Dir, c.UID, c.UID); err != nil {
			return nil, fmt.Errorf("network: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	s, err := launch(program, c)
	if err != nil {
		return nil, fmt.Errorf("network: start %s: %w", program, err)
	}
	defer s.ready.Close()
	defer s.words.Close()
	server, err := s.connect(ctx, c)
	if err == nil {
		return server, s.child.Release()
	}
	err = fmt.Errorf("network: %s: %w%s", Program, err, s.lastWords())
	if s.life != nil {
		s.life.Close()
	}
	_ = s.child.Kill() // fails if it has ended
	_, werr := s.child.Wait()
	return nil, errors.Join(err, werr)
}

// starting is a server that is being started.
type starting struct {
	child *os.Process
	life  *os.File
	ready *os.File // the server writes to it when it is ready
	words *os.File // its standard output and error
}

// File descriptors that a server inherits, after DirFD.
const (
	readyFD = DirFD + 1 + iota
	wordsFD
	lifeFD
)

func launch(program string, c Config) (_ *starting, err error) {
	s := &starting{}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
		if err != nil {
			for _, f := range []*os.File{s.life, s.ready, s.words} {
				f.Close() // a nil file only returns an error
			}
		}
	}()
	dir, err := os.Open(c.Dir)
	if err != nil {
		return nil, err
	}
	theirs = append(theirs, dir)
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	theirs = append(theirs, null)
	readyEnd, err := pipe(&s.ready, &theirs, true)
	if err != nil {
		return nil, err
	}
	wordsEnd, err := pipe(&s.words, &theirs, true)
	if err == nil {
		err = unix.SetNonblock(int(wordsEnd.Fd()), true)
	}
	if err != nil {
		return nil, err
	}
	// The server inherits the read end of its own output: what it writes after its start fills the pipe and is then
	// lost. So a hostile container cannot fill a disk with it.
	files := []*os.File{null, wordsEnd, wordsEnd, dir, readyEnd, s.words}
	if c.Namespace == "" {
		lifeEnd, err := pipe(&s.life, &theirs, false)
		if err != nil {
			return nil, err
		}
		files = append(files, lifeEnd)
	}
	sys := &syscall.SysProcAttr{Setsid: true}
	if c.Namespace != "" {
		// Its sandbox makes / private non-recursively and then unmounts everything: without a mount namespace of its
		// own, it would unmount this system's /run/netns too.
		sys.Unshareflags = syscall.CLONE_NEWNS
	}
	if c.UID != 0 {
		sys.Credential = &syscall.Credential{Uid: uint32(c.UID), Gid: uint32(c.UID)}
		sys.AmbientCaps = []uintptr{unix.CAP_NET_BIND_SERVICE}
	}
	s.child, err = os.StartProcess(program, arguments(c), &os.ProcAttr{Dir: "/", Env: []string{}, Sys: sys, Files: files})
	return s, err
}

func arguments(c Config) []string {
	folder := fmt.Sprintf("/proc/self/fd/%d/", DirFD)
	args := []string{Program, "--disable-host-loopback", "--enable-seccomp", fmt.Sprintf("--ready-fd=%d", readyFD),
		"--api-socket=" + folder + requestSocket, "--cidr=" + vmm.UserNetwork(c.Subnet).Address.Masked().String()}
	if c.Namespace == "" {
		return append(args, "--target-type=bess", fmt.Sprintf("--exit-fd=%d", lifeFD), folder+packetSocket)
	}
	// It enters the namespace before it sandboxes itself.
	return append(args, "--configure", "--mtu=65520", "--enable-sandbox", "--netns-type=path", c.Namespace, "eth0")
}

// pipe creates a pipe, with our end in ours and the other appended to theirs.
func pipe(ours **os.File, theirs *[]*os.File, weRead bool) (their *os.File, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	if *ours, their = w, r; weRead {
		*ours, their = r, w
	}
	*theirs = append(*theirs, their)
	return their, nil
}

// connect waits until the server is ready, and forwards the ports.
func (s *starting) connect(ctx context.Context, c Config) (_ *Server, err error) {
	server := &Server{PID: s.child.Pid, Life: s.life}
	stop := context.AfterFunc(ctx, func() { _ = s.ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if c.Namespace == "" {
		if server.Socket, err = s.dial(ctx, c.Dir); err != nil {
			return nil, err
		}
	}
	if _, err = io.ReadFull(s.ready, make([]byte, 1)); err != nil {
		if err = context.Cause(ctx); err == nil {
			err = errors.New("it has ended")
		}
	}
	for _, p := range c.Ports {
		if err == nil {
			err = requestForward(ctx, c, p)
		}
	}
	if err != nil && server.Socket != nil {
		server.Socket.Close()
	}
	return server, err
}

// dial connects to the packet socket as soon as it exists.
func (s *starting) dial(ctx context.Context, dir string) (*os.File, error) {
	for {
		f, err := dialPackets(dir)
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) {
			return f, err
		}
		var info unix.Siginfo
		err = unix.Waitid(unix.P_PID, s.child.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err != nil || info.Code != 0 {
			return nil, errors.New("it has ended")
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// inDir calls do with a short path for the directory: the path of a socket is limited to 107 bytes.
func inDir(dir string, do func(short string) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return do(fmt.Sprintf("/proc/self/fd/%d/", d.Fd()))
}

func dialPackets(dir string) (*os.File, error) {
	// Nonblocking: the directory is the server's, and what listens there may never accept.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	err = inDir(dir, func(short string) error {
		return unix.Connect(fd, &unix.SockaddrUnix{Name: short + packetSocket})
	})
	if err == nil {
		err = unix.SetNonblock(fd, false) // QEMU expects a blocking socket
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), packetSocket), nil
}

// Abandon ends a server with a packet socket whose starter was killed before it connected. The server waits for a
// connection, and only after that notices that its lifeline is closed.
func Abandon(dir string) {
	if f, err := dialPackets(dir); err == nil {
		f.Close()
	}
}

// requestForward requests the server to forward a port of the host.
func requestForward(ctx context.Context, c Config, p vmm.PortForward) (err error) {
	request, err := forwardRequest(p, c.Subnet)
	if err != nil {
		return err
	}
	var conn *net.UnixConn
	if err := inDir(c.Dir, func(short string) (err error) {
		conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: short + requestSocket})
		return err
	}); err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err = conn.Write(request); err == nil {
		err = conn.CloseWrite()
	}
	var answer struct {
		Error *struct{ Desc string }
	}
	if err == nil {
		err = json.NewDecoder(io.LimitReader(conn, 1<<16)).Decode(&answer)
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("port %s: %w", p, err)
	case answer.Error != nil:
		return fmt.Errorf("port %s: %s", p, answer.Error.Desc)
	}
	return nil
}

// maxWords bounds the server's output that an error quotes, in bytes.
const maxWords = 2048

// lastWords returns the server's output so far, to be appended to an error.
func (s *starting) lastWords() string {
	_ = s.words.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	b, _ := io.ReadAll(io.LimitReader(s.words, maxWords)) // the deadline ends it
	text := strings.TrimSpace(strings.Map(func(r rune) rune {
		if r == '\n' || r >= ' ' && r < 0x7f {
			return r
		}
		return -1
	}, string(b)))
	if text == "" {
		return ""
	}
	return "; it says: " + text
}
