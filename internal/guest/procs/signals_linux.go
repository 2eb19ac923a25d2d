package procs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// endsByDefault reports whether the default action of a signal ends a process. It is false for SIGKILL, which needs no
// special treatment in signalFirst.
func endsByDefault(sig syscall.Signal) bool {
	switch sig {
	case 0, syscall.SIGKILL,
		syscall.SIGCHLD, syscall.SIGCONT, syscall.SIGURG, syscall.SIGWINCH, // ignored by default
		syscall.SIGSTOP, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU:
		return false
	}
	return true
}

// handles reports whether a process handles, ignores or blocks a signal; true if that cannot be read.
func handles(pid int, sig syscall.Signal) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return true
	}
	known := false
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		switch name {
		case "SigBlk", "SigIgn", "SigCgt":
			mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil || mask&(1<<(uint(sig)-1)) != 0 {
				return true
			}
			known = true
		}
	}
	return !known
}

// signalFirst sends a signal to the first process. The kernel does not deliver signals to the init of a PID namespace
// for which it has no handler; if the signal would end any other process, SIGKILL is sent instead.
func (i *instance) signalFirst(sig syscall.Signal) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if endsByDefault(sig) && !handles(i.pid, sig) {
		if i.instead == 0 {
			i.instead = sig
		}
		sig = syscall.SIGKILL
	}
	err := i.t.spawn.signal(i.pid, sig)
	if sig == syscall.SIGKILL {
		err = errors.Join(err, thaw(cgroupRoot, cgroupOf(i.bundle.Dir)))
	}
	return err
}

// awaitProgram waits until a forked process has executed its program or has ended. The runtime returns as soon as it
// has told the process to execute it, which may still fail.
func awaitProgram(ctx context.Context, pid int) error {
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		st, ok := readStat(pid)
		if !ok || !st.noexec || st.state == "Z" || st.state == "X" {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("process %d does not execute its program: %w", pid, context.Cause(ctx))
		}
	}
}

// hasEnded reports whether a process is a zombie or does not exist: its exe link cannot be read any more. While its
// exit is being collected, reading it is not permitted.
func hasEnded(pid int) bool {
	_, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) ||
		errors.Is(err, os.ErrPermission) && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}
