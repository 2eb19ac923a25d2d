package procs

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// noteMemory marks a process that ended by SIGKILL as out of memory if its container had OOM kills.
func (i *instance) noteMemory(p *process, st syscall.WaitStatus) {
	if st.Signaled() && st.Signal() == syscall.SIGKILL || !st.Signaled() && st.ExitStatus() == 128+int(syscall.SIGKILL) {
		p.memory.Store(memoryReached(cgroupRoot, cgroupOf(i.bundle.Dir)))
	}
}

// memoryReached reports whether a control group, of cgroup v1 or v2, had OOM kills.
func memoryReached(root, cgroup string) bool {
	for _, file := range []string{filepath.Join(root, cgroup, "memory.events"),
		filepath.Join(root, "memory", cgroup, "memory.oom_control")} {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok && n != "0" {
				return true
			}
		}
	}
	return false
}

// OutOfMemory reports whether a process ended by SIGKILL in a container with OOM kills.
func (t *Table) OutOfMemory(container string, pid uint32) bool {
	p, err := t.procs.get(container, pid)
	return err == nil && p.memory.Load()
}
