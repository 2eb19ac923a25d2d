package main

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// spawn starts this program in a new session. It inherits standard error, and the other end of the returned connection
// as file descriptor 3.
func spawn(args []string, dir string) (*exec.Cmd, *net.UnixConn, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "supervisor"), os.NewFile(uintptr(pair[1]), "command")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err := errors.Join(err, ours.Close()); err != nil {
		return nil, nil, err
	}
	cmd := &exec.Cmd{Path: exe, Args: append([]string{os.Args[0]}, args...), Dir: dir, Stderr: os.Stderr,
		ExtraFiles: []*os.File{theirs}, SysProcAttr: &syscall.SysProcAttr{Setsid: true}}
	if err := cmd.Start(); err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return cmd, conn.(*net.UnixConn), nil
}

// spawnAlone starts this program in a new session, with its output in a file and no input. It may outlive this process.
func spawnAlone(args []string, output *os.File) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := &exec.Cmd{Path: exe, Args: append([]string{os.Args[0]}, args...), Dir: "/", Stdout: output, Stderr: output,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true}}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // what became of it is in its output
	return nil
}

// inherited returns the file that was inherited as fd. Programs that this one starts do not inherit it.
func inherited(fd int, name string) *os.File {
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}

// isSocket reports whether a file is a socket.
func isSocket(f *os.File) bool {
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeSocket != 0
}

// replace makes fd refer to f, by dup3.
func replace(f *os.File, fd int) error { return unix.Dup3(int(f.Fd()), fd, 0) }
