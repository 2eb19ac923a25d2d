package crun

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// New returns the runtime of this system, whose processes start starts. If there is none the error matches
// ErrNoRuntime.
func New(start Starter) (*Runtime, error) {
	path, err := Find()
	if err != nil {
		return nil, err
	}
	r := &Runtime{Path: path, Start: start}
	r.NoCgroups, r.HideUnified = cgroups("/sys/fs/cgroup")
	return r, nil
}

// cgroups examines the cgroup mounts, for Runtime.NoCgroups and Runtime.HideUnified.
func cgroups(dir string) (none, hide bool) {
	if fileSystem(dir) == unix.CGROUP2_SUPER_MAGIC {
		return unix.Access(dir, unix.W_OK) != nil, false
	}
	if fileSystem(dir) != unix.TMPFS_MAGIC {
		return true, false
	}
	// cgroup v1: a directory for each controller, and possibly the v2 hierarchy at unified.
	if fileSystem(dir+"/unified") == unix.CGROUP2_SUPER_MAGIC {
		controllers, err := os.ReadFile(dir + "/unified/cgroup.controllers")
		hide = err == nil && strings.TrimSpace(string(controllers)) != ""
	}
	return fileSystem(dir+"/memory") != unix.CGROUP_SUPER_MAGIC || unix.Access(dir+"/memory", unix.W_OK) != nil, hide
}

// fileSystem returns the type (statfs f_type) of the file system at a path, or 0.
func fileSystem(path string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return 0
	}
	return int64(st.Type)
}
