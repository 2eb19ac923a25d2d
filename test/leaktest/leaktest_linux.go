package leaktest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

func hostProbes(dirs []string) []probe {
	return []probe{
		{"mount", func() (map[string]int, error) { return mounts(dirs) }},
		{"loop device", func() (map[string]int, error) { return loops(dirs) }},
		{"open file", openFiles},
		{"process", func() (map[string]int, error) { return processes(dirs) }},
	}
}

// unescape undoes what the kernel does to names in mountinfo.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func below(path string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return path == d || strings.HasPrefix(path, d+"/") })
}

func mounts(dirs []string) (map[string]int, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	out := map[string]int{}
	for line := range strings.Lines(string(b)) {
		// id parent major:minor root mountpoint options ... - fstype source superoptions
		f := strings.Fields(line)
		_, rest, ok := strings.Cut(line, " - ")
		if len(f) < 6 || !ok {
			return nil, fmt.Errorf("mountinfo line %q", line)
		}
		if point := unescape.Replace(f[4]); below(point, dirs) {
			out[point+" ("+strings.Join(strings.Fields(rest)[:1], "")+")"]++
		}
	}
	return out, nil
}

func loops(dirs []string) (map[string]int, error) {
	paths, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	out := map[string]int{}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			continue // released just now
		}
		if file := strings.TrimSpace(string(b)); below(file, dirs) {
			out["/dev/"+strings.Split(p, "/")[3]+" "+file]++
		}
	}
	return out, nil
}

func openFiles() (map[string]int, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	out := map[string]int{}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		// The runtime opens its poller when it first needs it and keeps it.
		if err != nil || target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]" ||
			strings.HasPrefix(target, "/sys/fs/cgroup/") {
			continue
		}
		out[target]++
	}
	return out, nil
}

// processes lists our children, and what runs anywhere with one of dirs in its command line or with a
// file below one of them open.
func processes(dirs []string) (map[string]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	out := map[string]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		what, err := process(pid, dirs)
		if errors.Is(err, fs.ErrNotExist) || err != nil || what == "" {
			continue // it ended while we looked, or is none of ours
		}
		out[what]++
	}
	return out, nil
}

// kernelThread is PF_KTHREAD of the kernel.
const kernelThread = 0x00200000

func process(pid int, dirs []string) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// pid (name, which may hold anything) state parent group session terminal its-group flags ...
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return "", fmt.Errorf("stat of process %d: %q", pid, stat)
	}
	f := strings.Fields(string(stat[end+1:]))
	if len(f) < 7 {
		return "", fmt.Errorf("stat of process %d: %q", pid, stat)
	}
	if flags, err := strconv.ParseUint(f[6], 10, 64); err == nil && flags&kernelThread != 0 {
		return "", nil // it has neither a command line nor files
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return "", err
	}
	args := strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))
	ours := f[1] == strconv.Itoa(os.Getpid())
	for _, d := range dirs {
		ours = ours || strings.Contains(args, d)
	}
	ours = ours || holds(pid, dirs)
	if !ours {
		return "", nil
	}
	name := args
	if name == "" {
		name = string(stat[bytes.IndexByte(stat, '(') : end+1])
	}
	if len(name) > 200 {
		name = name[:200] + "…"
	}
	if f[0] == "Z" {
		name += " (nobody waited for it)"
	}
	return fmt.Sprintf("%d %s", pid, name), nil
}

// holds reports whether a process has something below dirs open. Those of other users do not tell.
func holds(pid int, dirs []string) bool {
	fds := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(fds)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		target, err := os.Readlink(filepath.Join(fds, e.Name()))
		return err == nil && below(strings.TrimSuffix(target, " (deleted)"), dirs)
	})
}

// Ended reports whether a process has ended with all its threads: until then its files, and their locks, are there.
// Where nobody collects it a zombie stays.
func Ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return err != nil || bytes.Contains(stat, []byte(") Z ")) && len(threads) == 1
}
