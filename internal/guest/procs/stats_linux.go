package procs

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/vmm"
)

// Stats returns the resource usage of a running container.
func (t *Table) Stats(container string) (vmm.ContainerStats, error) {
	c, err := t.container(container)
	if err != nil {
		return vmm.ContainerStats{}, err
	}
	c.mu.Lock()
	run := c.run
	c.mu.Unlock()
	if run == nil || run.ending() {
		return vmm.ContainerStats{}, fmt.Errorf("container %s: %w", container, gcsserver.ErrStopped)
	}
	if t.crun.NoCgroups {
		return vmm.ContainerStats{}, fmt.Errorf("container %s has no control group: %w", container, gcsserver.ErrUnsupported)
	}
	return cgroupStats(cgroupRoot, cgroupOf(run.bundle.Dir))
}

// cgroupFiles are the files of the statistics in cgroup v2 (newer) and v1 (older), the latter below the directory of
// their controller.
var cgroupFiles = []struct {
	newer, older, key string // key: the word before the number, where the file has several lines
	olderKey          string
	to                func(*vmm.ContainerStats, uint64)
}{
	{"cpu.stat", "cpuacct/cpuacct.usage", "usage_usec", "", nil},
	{"memory.current", "memory/memory.usage_in_bytes", "", "", func(s *vmm.ContainerStats, n uint64) { s.Memory = n }},
	{"memory.max", "memory/memory.limit_in_bytes", "", "", func(s *vmm.ContainerStats, n uint64) { s.MemoryLimit = n }},
	{"memory.events", "memory/memory.oom_control", "oom_kill", "oom_kill",
		func(s *vmm.ContainerStats, n uint64) { s.OOMKills = n }},
	{"pids.current", "pids/pids.current", "", "", func(s *vmm.ContainerStats, n uint64) { s.PIDs = n }},
	{"pids.max", "pids/pids.max", "", "", func(s *vmm.ContainerStats, n uint64) { s.PIDsLimit = n }},
}

// cgroupStats reads the statistics of a control group, of cgroup v1 or v2.
func cgroupStats(root, group string) (s vmm.ContainerStats, err error) {
	dir := filepath.Join(root, group)
	newer := true
	if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err != nil {
		newer = false
	}
	older := func(file string) string {
		controller, name := filepath.Split(file)
		return filepath.Join(root, controller, group, name)
	}
	for _, f := range cgroupFiles {
		path, key := filepath.Join(dir, f.newer), f.key
		if !newer {
			path, key = older(f.older), f.olderKey
		}
		n, ok := cgroupNumber(path, key)
		switch {
		case !ok:
		case f.to != nil:
			f.to(&s, n)
		case newer:
			s.CPU = time.Duration(min(n, math.MaxInt64/1000)) * time.Microsecond
		default:
			s.CPU = time.Duration(min(n, math.MaxInt64))
		}
	}
	if s.MemoryLimit >= math.MaxInt64&^0xfffff { // no limit in cgroup v1
		s.MemoryLimit = 0
	}
	s.Paused, _ = frozen(root, group)
	procs := filepath.Join(dir, "cgroup.procs")
	if newer {
		s.Read, s.Written = diskBytes(filepath.Join(dir, "io.stat"), "rbytes=", "wbytes=")
	} else {
		s.Read, s.Written = diskBytes(older("blkio/blkio.throttle.io_service_bytes"), "Read", "Write")
		procs = older("memory/cgroup.procs")
	}
	text, err := readBounded(procs)
	if err != nil {
		return s, fmt.Errorf("the container's control group: %w", err)
	}
	for _, word := range strings.Fields(string(text)) {
		if pid, err := strconv.Atoi(word); err == nil && pid > 0 && len(s.Processes) < vmm.MaxContainerProcesses {
			if p, ok := describeProcess(pid); ok {
				s.Processes = append(s.Processes, p)
			}
		}
	}
	return s, nil
}

// readBounded reads up to 1 MiB of a file.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 1<<20))
}

// cgroupNumber reads a number from a control file: that of the line with key, or of the first line if key is empty.
// "max" is 0.
func cgroupNumber(path, key string) (uint64, bool) {
	text, err := readBounded(path)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if key != "" && (len(f) != 2 || f[0] != key) || len(f) == 0 {
			continue
		}
		if f[len(f)-1] == "max" {
			return 0, true
		}
		n, err := strconv.ParseUint(f[len(f)-1], 10, 64)
		return n, err == nil
	}
	return 0, false
}

// diskBytes returns the sums over all disks in a control file: the numbers after the words with prefix read and write,
// in the same word or in the next one.
func diskBytes(path, read, write string) (r, w uint64) {
	text, err := readBounded(path)
	if err != nil {
		return 0, 0
	}
	words := strings.Fields(string(text))
	for i, word := range words {
		for prefix, sum := range map[string]*uint64{read: &r, write: &w} {
			number, ok := strings.CutPrefix(word, prefix)
			if ok && number == "" && i+1 < len(words) {
				number = words[i+1]
			}
			if n, err := strconv.ParseUint(number, 10, 64); ok && err == nil {
				*sum += n
			}
		}
	}
	return r, w
}

// userHertz is USER_HZ: the ticks per second of CPU times in /proc/PID/stat.
const userHertz = 100

// describeProcess reads a process from /proc; ok is false if it has ended.
func describeProcess(pid int) (p vmm.ContainerProcess, ok bool) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	text, err := readBounded(dir + "stat")
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if err != nil || open < 0 || end < open {
		return p, false
	}
	f := strings.Fields(string(text[end+1:]))
	if len(f) < 13 {
		return p, false
	}
	parent, _ := strconv.ParseUint(f[1], 10, 32)
	user, _ := strconv.ParseUint(f[11], 10, 40)
	system, _ := strconv.ParseUint(f[12], 10, 40)
	p = vmm.ContainerProcess{PID: uint32(pid), Parent: uint32(parent), Command: "[" + string(text[open+1:end]) + "]",
		CPU: time.Duration(user+system) * time.Second / userHertz}
	if line, err := readBounded(dir + "cmdline"); err == nil && len(line) > 0 {
		line = bytes.TrimRight(line[:min(len(line), vmm.MaxContainerCommand)], "\x00")
		p.Command = strings.ToValidUTF8(string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})), "?")
	}
	status, _ := readBounded(dir + "status")
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Uid:" {
			uid, _ := strconv.ParseUint(f[1], 10, 32)
			p.UID = uint32(uid)
		}
	}
	return p, true
}
