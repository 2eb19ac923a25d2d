package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// pids lists the processes of this system.
func pids(t *testing.T) (all []int) {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		var pid int
		fmt.Sscanf(name, "/proc/%d", &pid)
		all = append(all, pid)
	}
	return all
}

// about reads a file of a process, which may have ended.
func about(pid int, file string) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	return string(b)
}

// ours reports whether a process has its environment from containerd, or was started by one that has: virtiofsd has
// one of its own.
func (d *daemon) ours(pid int) bool {
	for range 16 {
		if strings.Contains(about(pid, "environ"), "STRATA_SHIM_STATE="+d.vms()+"\x00") {
			return true
		}
		_, rest, _ := strings.Cut(about(pid, "stat"), ") ")
		var state string
		pid = 0
		if fmt.Sscan(rest, &state, &pid); pid <= 1 {
			break
		}
	}
	return false
}

// processes are all that containerd has started, themselves or by others, with their names.
func (d *daemon) processes(t *testing.T) map[int]string {
	t.Helper()
	found := map[int]string{}
	for _, pid := range pids(t) {
		if pid != d.cmd.Process.Pid && d.ours(pid) {
			found[pid] = strings.TrimSpace(about(pid, "comm"))
		}
	}
	return found
}

// orphans are servers of shares whose shim is gone, by what they have mounted.
func (d *daemon) orphans(t *testing.T) (left []int) {
	t.Helper()
	for _, pid := range pids(t) {
		if about(pid, "comm") == "virtiofsd\n" && strings.Contains(about(pid, "mountinfo"), d.dir+"/") && !d.ours(pid) {
			left = append(left, pid)
		}
	}
	return left
}

// groups are the control groups that containers of ctr have on the host.
func groups() (dirs []string) {
	for _, pattern := range []string{"/sys/fs/cgroup/default/*/cgroup.procs", "/sys/fs/cgroup/*/default/*/cgroup.procs"} {
		found, _ := filepath.Glob(pattern) // which is a good one
		for _, name := range found {
			dirs = append(dirs, filepath.Dir(name))
		}
	}
	return dirs
}
