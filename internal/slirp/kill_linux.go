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

// killTime bounds how long a killed server may take to be gone.
const killTime = 10 * time.Second

// Kill ends the server that has a folder, if there is one, whoever has started it.
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

// serves reports whether a process is the server that has a folder. One that is about to become it counts.
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
	if !serves(pid, folder) { // another process has the number now
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
			// Where it is not our child somebody else collects it.
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
