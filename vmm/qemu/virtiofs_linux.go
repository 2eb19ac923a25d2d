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

// serverOptions configure the start of a server.
type serverOptions struct {
	dir  string // the state directory
	note string // the path for its pid and start time
}

// server is a virtiofsd process that was started, and our end of the connection to it.
type server struct {
	proc *process
	conn *os.File
	said *os.File // its output; what does not fit into the pipe is lost
}

// serverPrograms lists where distributions install virtiofsd: QEMU's own (up to QEMU 7) and the Rust one.
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

// sharingServer returns virtiofsd's path and arguments, or an error if this process cannot use it.
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
	help, _ := exec.CommandContext(limited, argv[0], argv[1:]...).CombinedOutput() // its exit code does not matter
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

// helpTime bounds running virtiofsd to find out its options.
const helpTime = 10 * time.Second

// serverArguments returns the arguments for a virtiofsd with this help text. Files that the guest creates get their
// owners and, except for device nodes, their modes on the host, as in a container's bind mount.
func serverArguments(help string, fd int, source string) ([]string, error) {
	listen := fmt.Sprintf("--fd=%d", fd)
	switch {
	case strings.Contains(help, "--shared-dir"): // the Rust one
		return []string{listen, "--shared-dir=" + source, "--sandbox=namespace", "--cache=auto", "--modcaps=-mknod",
			"--log-level=error"}, nil
	case strings.Contains(help, "source=PATH"):
		return []string{listen, "-f", "-o", "source=" + source, "-o", "sandbox=namespace", "-o", "cache=auto",
			"-o", "modcaps=-mknod", "-o", "log_level=err"}, nil
	}
	return nil, fmt.Errorf("virtiofsd has options of a kind that is not known: %w", errors.ErrUnsupported)
}

// startServer starts the server of a share and connects to it. Of the host's files it sees only the share.
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
	// The server's end too, as nobody reads its output while it serves. os.NewFile takes the mode from the descriptor,
	// so that comes first.
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
		_ = s.said.Close() // words may have closed it
		return nil, errors.Join(err, conn.Close())
	}
	return s, nil
}

// serverSockets is held while the name of the socket is in use. Only one process controls a machine at a time.
var serverSockets sync.Mutex

// connectedSocket returns a listening socket with one pending connection, and the other end of that connection. Its
// name is removed, so nobody else can connect.
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
	if err := remove(); err != nil { // left by a process that was killed
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

// hold opens the process that was just started, and writes its pid and start time to the file note.
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

// words returns what an exiting server printed, to be appended to an error. It closes said.
func (s *server) words(ctx context.Context) string {
	defer s.said.Close()
	if s.proc != nil {
		limited, cancel := context.WithTimeout(ctx, serverEndTime)
		defer cancel()
		_ = s.proc.waitExit(limited)
	}
	_ = s.said.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // in case it is still running
	var b bytes.Buffer
	_, _ = io.Copy(&b, io.LimitReader(s.said, maxTail))
	return quoteTail("virtiofsd says", b.String())
}

// shareRoot is the share's path in the server's mount namespace.
const shareRoot = sharePlace + "/share"

// sharePlace is a directory that exists on every system and that virtiofsd does not need; a tmpfs is mounted there.
const sharePlace = "/tmp"

// startSharing starts a program in a mount namespace that has the share at shareRoot.
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
		runtime.LockOSThread() // never unlocked, so the thread ends with the goroutine
		result <- inShare(d, start)
	}()
	return pid, <-result
}

// inShare calls start in a new mount namespace with the share. Afterwards the thread must not run other code.
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
	// Return to the old namespace, so that the new one ends with the server and not with this thread.
	return errors.Join(err, unix.Setns(own, unix.CLONE_NEWNS))
}

// changedShare returns the error of a share whose file type has changed.
func changedShare(d vmm.VirtioFSShare) error {
	return fmt.Errorf("%s is not what it was: it was to be a folder or a regular file, and has changed", d.Path)
}

// prepareShare mounts the share at shareRoot. The caller is in a new mount namespace.
func prepareShare(d vmm.VirtioFSShare) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount namespace for virtiofsd: %w", err)
	}
	fd, err := unix.Open(d.Path, unix.O_PATH|unix.O_CLOEXEC, 0) // in this namespace: mounts of others cannot be bound
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
	if d.File { // no other files can be created beside it
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
