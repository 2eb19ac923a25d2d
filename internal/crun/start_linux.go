package crun

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// consoleName is the socket over which the runtime sends the master of a terminal.
const consoleName = "console.sock"

// start calls the runtime and returns once the process runs.
func (b Bundle) start(ctx context.Context, p Process, pidName, name string, args ...string) (int, *os.File, error) {
	pidFile := filepath.Join(b.Dir, pidName)
	if err := os.Remove(pidFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, nil, err
	}
	defer os.Remove(pidFile)
	args = append([]string{"--pid-file", pidFile}, args...)
	if p.Check == nil { // "create" is always detached
		args = append([]string{"--detach"}, args...)
	}
	var console *consoleSocket
	if p.Terminal {
		var err error
		if console, err = listenConsole(b.Dir); err != nil {
			return 0, nil, err
		}
		defer console.close()
		// Relative to the runtime's working directory: the path of a socket is limited to 107 bytes.
		args = append(args, "--console-socket", consoleName)
	}
	c := b.command(name, append(args, id)...)
	c.Stdio, c.Extra = p.Stdio, p.Extra
	c.OwnUnified = c.HideUnified && !b.Runtime.NoCgroups
	if p.Terminal {
		c.Stdio = [3]*os.File{}
	}
	if err := b.run(ctx, name, c); err != nil {
		return 0, nil, err
	}
	pid, err := readPid(pidFile)
	if err != nil {
		return 0, nil, fmt.Errorf("%s %s: %w", b.Runtime.name(), name, err)
	}
	var master *os.File
	if console != nil {
		if master, err = console.receive(ctx); err != nil {
			return pid, nil, fmt.Errorf("%s %s: the terminal: %w", b.Runtime.name(), name, err)
		}
	}
	if p.Check != nil {
		if err = p.Check(pid); err == nil {
			err = b.call(ctx, "start", id)
		}
	}
	if err == nil {
		err = b.executed(ctx, name, pid)
	}
	if err != nil {
		if master != nil {
			master.Close()
		}
		return pid, nil, err
	}
	return pid, master, nil
}

// readPid reads a PID file.
func readPid(path string) (int, error) {
	text, err := readTail(path, 0)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 31)
	if err != nil || pid < 2 {
		return 0, fmt.Errorf("its file %s holds no process number but %.40q", filepath.Base(path), text)
	}
	return int(pid), nil
}

// executed waits until the process does not execute the runtime any more, or has ended. Whether it has executed its
// program is left to whoever reaps it.
func (b Bundle) executed(ctx context.Context, name string, pid int) error {
	exe := fmt.Sprintf("/proc/%d/exe", pid)
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 20*time.Millisecond) {
		if link, err := os.Readlink(exe); err != nil || !b.Runtime.isSelf(link) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s %s: the program is not executed: %w", b.Runtime.name(), name, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}

// isSelf reports whether a process's exe link is that of the runtime, which may run from a copy of itself.
func (r *Runtime) isSelf(link string) bool {
	link = strings.TrimSuffix(link, " (deleted)")
	return link == r.Path || strings.HasPrefix(link, "/memfd:crun_") || strings.HasPrefix(link, "/memfd:runc_")
}

// consoleSocket receives the master of a terminal.
type consoleSocket struct {
	l    *net.UnixListener
	path string
}

func listenConsole(dir string) (*consoleSocket, error) {
	path := filepath.Join(dir, consoleName)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix",
		Name: fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), consoleName)})
	if err != nil {
		return nil, fmt.Errorf("the socket for a terminal: %w", err)
	}
	l.SetUnlinkOnClose(false) // the path, which has a file descriptor number, is not valid then
	return &consoleSocket{l, path}, nil
}

func (c *consoleSocket) close() {
	c.l.Close()
	os.Remove(c.path)
}

// receive returns the terminal that the runtime has sent. The runtime must have exited.
func (c *consoleSocket) receive(ctx context.Context) (*os.File, error) {
	deadline := time.Now().Add(10 * time.Second)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	_ = c.l.SetDeadline(deadline)
	conn, err := c.l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(deadline)
	text, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(text, oob)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, errors.Join(err, errors.New("it is not handed over"))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(err, errors.New("it is not handed over"))
	}
	unix.CloseOnExec(fds[0])
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}
