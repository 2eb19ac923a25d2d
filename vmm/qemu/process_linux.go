package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/regfile"
)

// process is a running process, QEMU or a server, referred to by a pidfd: signals never reach another process that got
// the same pid.
type process struct {
	pid    int
	pidfd  *os.File
	exited chan struct{} // closed when the process has exited
	ending string        // how it ended, if it is our child; set before exited is closed
	ended  chan struct{} // closed when watch has returned
	once   sync.Once
}

// errNoProcess is matched by the error when the process is not running any more.
var errNoProcess = errors.New("the QEMU process does not run any more")

// openProcess opens the process pid if it started at start, in clock ticks since the host booted; if start is 0, if it
// is the QEMU that has inherited the given pid file.
func openProcess(pid int, start uint64, pidfile string) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, errNoProcess
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	now, err := processStart(pid)
	if err == nil && start == 0 {
		file, statErr := os.Stat(pidfile)
		if statErr != nil || !isMachine(pid, file) {
			err = errNoProcess
		}
	}
	// The state of the main thread is not sufficient: other threads may still be exiting.
	dead := exited(fd)
	if dead {
		reap(fd)
	}
	if err != nil || dead || start != 0 && now != start {
		f.Close()
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			err = errNoProcess
		}
		return nil, err
	}
	p := &process{pid: pid, pidfd: f, exited: make(chan struct{}), ended: make(chan struct{})}
	go p.watch()
	return p, nil
}

// watch waits for the exit of the process, or for close.
func (p *process) watch() {
	defer close(p.ended)
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return // closed
	}
	dead := false
	// A closed descriptor ends Read with an error.
	_ = raw.Read(func(fd uintptr) bool {
		if dead = exited(int(fd)); dead {
			p.ending = reap(int(fd))
		}
		return dead
	})
	if dead {
		close(p.exited)
	}
}

// exited reports whether a process has exited, with all its threads.
func exited(pidfd int) bool {
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, 0)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n == 1
		}
	}
}

// reap collects the status of a process that has exited, and describes it if the process is our child.
func reap(pidfd int) string {
	var info unix.Siginfo
	if unix.Waitid(unix.P_PIDFD, pidfd, &info, unix.WEXITED|unix.WNOHANG, nil) != nil {
		return "" // another process's child
	}
	// The status follows number, errno, code, pid and uid.
	status := *(*int32)(unsafe.Add(unsafe.Pointer(&info), statusOffset))
	switch info.Code {
	case cldExited:
		return fmt.Sprintf(" (exit code %d)", status)
	case cldKilled, cldDumped:
		return fmt.Sprintf(" (%s)", unix.SignalName(syscall.Signal(status)))
	}
	return ""
}

// Codes and the offset of the status in siginfo; see sigaction(2).
const (
	cldExited, cldKilled, cldDumped = 1, 2, 3

	statusOffset = 24
)

// kill kills the process with SIGKILL, which also works on a stopped process.
func (p *process) kill() error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var killErr error
	if err := raw.Control(func(fd uintptr) {
		killErr = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0)
	}); err != nil {
		return err
	}
	if errors.Is(killErr, unix.ESRCH) {
		return nil
	}
	return killErr
}

// close closes the pidfd. The process is unaffected.
func (p *process) close() {
	p.once.Do(func() { p.pidfd.Close() })
	<-p.ended
}

// waitExit waits until the process has exited.
func (p *process) waitExit(ctx context.Context) error {
	select {
	case <-p.exited:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// processStart returns when a process started, in clock ticks since the host booted.
func processStart(pid int) (start uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is the name, in parentheses, and may contain any character.
	i := strings.LastIndexByte(string(b), ')')
	f := strings.Fields(string(b[i+1:]))
	if i < 0 || len(f) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat is not understood", pid)
	}
	return strconv.ParseUint(f[19], 10, 64)
}

// isMachine reports whether a process is the QEMU that has inherited the file.
func isMachine(pid int, file os.FileInfo) bool {
	fi, err := os.Stat(fmt.Sprintf("/proc/%d/fd/%d", pid, pidFD))
	if err != nil || !os.SameFile(fi, file) {
		return false
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.Contains(string(args), "\x00-sandbox\x00") // not a fork of the starter before exec
}

// searchMachine searches all processes for the QEMU that has inherited the file at path. It returns its pid, or 0.
func searchMachine(path string) (pid int, err error) {
	file, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && isMachine(pid, file) {
			return pid, nil
		}
	}
	return 0, nil
}

// pidfile returns the path of the file that a running QEMU keeps open and is identified by.
func pidfile(dir string) string { return filepath.Join(dir, "qemu.pid") }

// findProcess opens the QEMU of the machine in a state directory. If none is running, the error is errNoProcess.
func findProcess(dir string) (*process, error) {
	if b, err := regfile.ReadState(filepath.Join(dir, "pid")); err == nil {
		var pid int
		var start uint64
		if n, _ := fmt.Sscan(string(b), &pid, &start); n == 2 && pid > 0 && start > 0 {
			return openProcess(pid, start, "")
		}
	}
	// The starter was interrupted before it wrote the pid.
	path := pidfile(dir)
	pid, err := searchMachine(path)
	if err != nil {
		return nil, err
	}
	if pid == 0 {
		return nil, errNoProcess
	}
	return openProcess(pid, 0, path)
}

// freeBytes returns how much an unprivileged user can write to the file system of path.
func freeBytes(path string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, err
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// nonBlock makes opening a named pipe not wait for its other end.
const nonBlock = unix.O_NONBLOCK

// memoryFile returns a file in memory (memfd) with the content, followed by zeroes up to size. It is open read-only, as
// QEMU expects of a file that it only reads.
func memoryFile(name string, content io.Reader, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	n, err := io.Copy(f, content) // without copies in user space if content is a file
	if err == nil && size > n {
		err = f.Truncate(size)
	}
	reading := -1
	if err == nil {
		reading, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("file in memory: %w", err)
	}
	return os.NewFile(uintptr(reading), name), nil
}

// sendFile sends b with a descriptor. It may send only a part of b; the descriptor goes with the first byte.
func sendFile(conn net.Conn, b []byte, f *os.File) (int, error) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("send a descriptor over %T: %w", conn, errors.ErrUnsupported)
	}
	n, _, err := c.WriteMsgUnix(b, unix.UnixRights(int(f.Fd())), nil)
	return n, err
}
