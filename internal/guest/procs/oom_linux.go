package procs

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// noteMemory notes that a process was killed in a container of which the kernel has killed processes for their memory.
func (i *instance) noteMemory(p *process, st syscall.WaitStatus) {
	if st.Signaled() && st.Signal() == syscall.SIGKILL || !st.Signaled() && st.ExitStatus() == 128+int(syscall.SIGKILL) {
		p.memory.Store(memoryReached(cgroupRoot, cgroupOf(i.bundle.Dir)))
	}
}

// memoryReached reports whether processes of a cgroup were killed for their memory, in hierarchies of either version.
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

// OutOfMemory reports whether a process was killed in a container that reached a memory limit.
func (t *Table) OutOfMemory(container string, pid uint32) bool {
	p, err := t.procs.get(container, pid)
	return err == nil && p.memory.Load()
}
