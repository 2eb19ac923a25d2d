package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/vmm"
)

// serverOptions say how a server is started.
type serverOptions struct {
	dir  string // the state directory
	note string // where its number is noted
}

// server is a virtiofsd that was started, and our end of the connection to it.
type server struct {
	proc *process
	conn *os.File
	said *os.File // what it says when it ends; what does not fit into the pipe is lost
}

// serverPrograms are where distributions have virtiofsd: that of QEMU up to 7, and the one written in Rust.
var serverPrograms = []string{"/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd"}

// FindServer returns virtiofsd's path.
func FindServer() (string, error) {
	if path, err := exec.LookPath("virtiofsd"); err == nil {
		return path, nil
	}
	for _, path := range serverPrograms {
		if unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("virtiofsd is not installed: %w; install it with: apt-get install qemu-system-common "+
		"(Debian 12) or virtiofsd (Debian 13)", exec.ErrNotFound)
}

// CanShare returns an error unless n folders and files of this host can be shared with a machine.
func CanShare(n int) error {
	if n > maxShares {
		return fmt.Errorf("%d folders and files of the host: a VM has room for %d: %w", n, maxShares, errors.ErrUnsupported)
	}
	_, _, err := sharingServer()
	return err
}

// sharingServer returns virtiofsd's path, and its arguments, where this process can use it.
func sharingServer() (program string, args []string, err error) {
	if program, err = FindServer(); err != nil {
		return "", nil, err
	}
	argv := []string{program, "--help"}
	root := os.Geteuid() == 0
	if !root {
		user, err := userNamespace()
		if err != nil {
			return "", nil, fmt.Errorf("without root virtiofsd needs unshare of util-linux: %w: %w", errors.ErrUnsupported, err)
		}
		argv = append(user, argv...)
	}
	limited, cancel := context.WithTimeout(context.Background(), helpTime)
	defer cancel()
	help, _ := exec.CommandContext(limited, argv[0], argv[1:]...).CombinedOutput() // its exit code says nothing
	args, err = serverArguments(string(help), 3, shareRoot)
	switch {
	case err != nil && !root:
		err = fmt.Errorf("virtiofsd needs root, or a user namespace with further users (/etc/subuid, /etc/subgid, "+
			"newuidmap of uidmap): run strata as root, or without volumes: %w%s", errors.ErrUnsupported,
			quoteTail("it says", string(help)))
	case err != nil:
		err = fmt.Errorf("%s: %w%s", program, err, quoteTail("it says", string(help)))
	}
	return program, args, err
}

// helpTime bounds the question which options virtiofsd has.
const helpTime = 10 * time.Second

// serverArguments are those of a virtiofsd that says this of itself. Files of the guest get their owners and, but
// for device nodes, their modes on the host, as in a container's bind mount.
func serverArguments(help string, fd int, source string) ([]string, error) {
	listen := fmt.Sprintf("--fd=%d", fd)
	switch {
	case strings.Contains(help, "--shared-dir"): // the one written in Rust
		return []string{listen, "--shared-dir=" + source, "--sandbox=namespace", "--cache=auto", "--modcaps=-mknod",
			"--log-level=error"}, nil
	case strings.Contains(help, "source=PATH"):
		return []string{listen, "-f", "-o", "source=" + source, "-o", "sandbox=namespace", "-o", "cache=auto",
			"-o", "modcaps=-mknod", "-o", "log_level=err"}, nil
	}
	return nil, fmt.Errorf("virtiofsd has options of a kind that is not known: %w", errors.ErrUnsupported)
}

// startServer starts the server of a share and connects to it. It sees nothing of the host but the share.
func startServer(d vmm.VirtioFSShare, o serverOptions) (_ *server, err error) {
	program, args, err := sharingServer()
	if err != nil {
		return nil, err
	}
	listener, conn, err := connectedSocket(o.dir)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	s := &server{conn: conn}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	says := os.NewFile(uintptr(ends[1]), "words of virtiofsd")
	defer says.Close()
	// For the server's end too, as nobody reads what it says as long as it serves. A file that was made for a
	// descriptor which blocks stays as the descriptor is.
	err = errors.Join(unix.SetNonblock(ends[0], true), unix.SetNonblock(ends[1], true))
	s.said = os.NewFile(uintptr(ends[0]), "words of virtiofsd")
	pid := 0
	if err == nil {
		pid, err = startSharing(d, program, args, []*os.File{says, says, listener})
	}
	if err != nil {
		_ = says.Close()
		err = fmt.Errorf("%w%s", err, s.words(context.Background()))
	}
	if err == nil {
		err = s.hold(pid, o.note)
	}
	if err != nil {
		_ = s.said.Close() // it may be closed
		return nil, errors.Join(err, conn.Close())
	}
	return s, nil
}

// serverSockets keeps the name of the socket to one start at a time. Other processes do not control the machine.
var serverSockets sync.Mutex

// connectedSocket returns a socket that listens, with a connection that waits in it and the other end of that. Nobody
// else can connect any more.
func connectedSocket(dir string) (listener, conn *os.File, err error) {
	const name = "virtiofs.sock"
	remove := func() error {
		err := os.Remove(filepath.Join(dir, name))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	serverSockets.Lock()
	defer serverSockets.Unlock()
	if err := remove(); err != nil { // of a process that was killed
		return nil, nil, err
	}
	if listener, err = listenSocket(dir, name); err != nil {
		return nil, nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		conn = os.NewFile(uintptr(fd), name)
		err = inDir(dir, func(short string) error {
			return unix.Connect(fd, &unix.SockaddrUnix{Name: short + "/" + name})
		})
	}
	if err = errors.Join(err, remove()); err != nil {
		if conn != nil {
			conn.Close()
		}
		return nil, nil, errors.Join(fmt.Errorf("socket for virtiofsd: %w", err), listener.Close())
	}
	return listener, conn, nil
}

// hold takes hold of the server that was just started, and notes its number.
func (s *server) hold(pid int, note string) error {
	start, err := processStart(pid)
	if err != nil {
		return err
	}
	if s.proc, err = openProcess(pid, start, ""); err != nil {
		return fmt.Errorf("start virtiofsd: %w%s", err, s.words(context.Background()))
	}
	if err := writeFile(note, fmt.Appendf(nil, "%d %d\n", pid, start)); err != nil {
		err = errors.Join(err, s.proc.kill())
		s.proc.close()
		return err
	}
	return nil
}

// words is what a server said that ends, to be put behind an error.
func (s *server) words(ctx context.Context) string {
	defer s.said.Close()
	if s.proc != nil {
		limited, cancel := context.WithTimeout(ctx, serverEndTime)
		defer cancel()
		_ = s.proc.waitExit(limited)
	}
	_ = s.said.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // where it lives on
	var b bytes.Buffer
	_, _ = io.Copy(&b, io.LimitReader(s.said, maxTail))
	return quoteTail("virtiofsd says", b.String())
}

// shareRoot is where a server finds its share, in a mount namespace of its own.
const shareRoot = sharePlace + "/share"

// sharePlace is a directory that every system has and virtiofsd does not need.
const sharePlace = "/tmp"

// startSharing starts a program in a mount namespace where the share is at shareRoot.
func startSharing(d vmm.VirtioFSShare, program string, args []string, files []*os.File) (pid int, err error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	if os.Geteuid() != 0 {
		return startUserSharing(d, program, args, append([]*os.File{null}, files...))
	}
	start := func() error {
		child, err := os.StartProcess(program, append([]string{program}, args...), &os.ProcAttr{
			Dir: "/", Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, Files: append([]*os.File{null}, files...),
			Sys: &syscall.SysProcAttr{Setsid: true}, // a session of its own, as QEMU has
		})
		if err != nil {
			return err
		}
		pid = child.Pid
		return child.Release()
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		result <- inShare(d, start)
	}()
	return pid, <-result
}

// inShare calls start in a mount namespace with the share. The thread is good for nothing else afterwards.
func inShare(d vmm.VirtioFSShare, start func() error) error {
	own, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace for virtiofsd: %w", err)
	}
	err = prepareShare(d)
	if err == nil {
		err = start()
	}
	// Back, so that the copies of all mounts end with what is started, and not with this thread.
	return errors.Join(err, unix.Setns(own, unix.CLONE_NEWNS))
}

// changedShare is the error of a share that is another kind of file by now.
func changedShare(d vmm.VirtioFSShare) error {
	return fmt.Errorf("%s is not what it was: it was to be a folder or a regular file, and has changed", d.Path)
}

// prepareShare makes shareRoot in a mount namespace of its own.
func prepareShare(d vmm.VirtioFSShare) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount namespace for virtiofsd: %w", err)
	}
	fd, err := unix.Open(d.Path, unix.O_PATH|unix.O_CLOEXEC, 0) // here: mounts of other namespaces cannot be bound
	if err != nil {
		return &os.PathError{Op: "open", Path: d.Path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: d.Path, Err: err}
	}
	if kind := st.Mode & unix.S_IFMT; d.File != (kind == unix.S_IFREG) || !d.File && kind != unix.S_IFDIR {
		return changedShare(d)
	}
	if err := unix.Mount("tmpfs", sharePlace, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC,
		"size=64k,mode=755"); err != nil {
		return fmt.Errorf("place for the share: %w", err)
	}
	target := shareRoot
	if err := os.Mkdir(shareRoot, 0o755); err != nil {
		return err
	}
	if d.File {
		target += "/" + vmm.VirtioFSFile
		if err := os.WriteFile(target, nil, 0o600); err != nil {
			return err
		}
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", d.Path, err)
	}
	if d.File { // nothing can be put beside the file
		if err := unix.Mount("", sharePlace, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|
			unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("place for the share: %w", err)
		}
	}
	if !d.ReadOnly {
		return nil
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("make %s read-only: %w", d.Path, err)
	}
	return nil
}
