package slirp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// killTime bounds the wait for a killed server to end.
const killTime = 10 * time.Second

// Kill kills the server of a directory, if there is one, even if another process has started it.
func Kill(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, killTime)
	defer cancel()
	folder, err := os.Stat(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !serves(pid, folder) {
			continue
		}
		if err := killOne(ctx, pid, folder); err != nil {
			return fmt.Errorf("end %s (process %d): %w", Program, pid, err)
		}
	}
	return nil
}

// serves reports whether a process is the server of a directory, or is about to execute it.
func serves(pid int, folder os.FileInfo) bool {
	fi, err := os.Stat(fmt.Sprintf("/proc/%d/fd/%d", pid, DirFD))
	if err != nil || !os.SameFile(fi, folder) {
		return false
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && len(args) > len(Program) && string(args[:len(Program)+1]) == Program+"\x00"
}

func killOne(ctx context.Context, pid int, folder os.FileInfo) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !serves(pid, folder) { // the PID was reused
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			// Reap it if it is our child.
			_ = unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED|unix.WNOHANG, nil)
			return nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
