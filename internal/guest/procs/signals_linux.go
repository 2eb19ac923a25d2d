package procs

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// endsByDefault reports whether a signal ends a process that does nothing about it.
func endsByDefault(sig syscall.Signal) bool {
	switch sig {
	case 0, syscall.SIGKILL, // which nobody handles
		syscall.SIGCHLD, syscall.SIGCONT, syscall.SIGURG, syscall.SIGWINCH, // passed over
		syscall.SIGSTOP, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU:
		return false
	}
	return true
}

// handles reports whether a process handles, ignores or blocks a signal. What cannot be read is taken for yes.
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
