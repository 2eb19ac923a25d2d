package ocispec

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// systemMounts are kernel file systems with the only destinations at which they may be mounted: elsewhere, the paths
// that the spec masks would be visible.
var systemMounts = map[string]string{"proc": "/proc", "sysfs": "/sys", "devpts": "/dev/pts", "mqueue": "/dev/mqueue",
	"cgroup": "/sys/fs/cgroup", "cgroup2": "/sys/fs/cgroup"}

// mountFlags are the mount options that are flags. "shared" is not allowed, because mounts made in the container would
// propagate to the host; nor are "slave" and "unbindable", which have no effect because the runtime makes all mounts
// private.
var mountFlags = []string{"bind", "rbind", "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync",
	"async", "dirsync", "atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime",
	"nostrictatime",
	"private", "rprivate", "newinstance", "tmpcopyup", "defaults",
	"rro", "rnosuid", "rnodev", "rnoexec"}

// excluding are pairs of contradictory flags, of which crun would always use the second.
var excluding = [][2]string{{"rw", "ro"}, {"suid", "nosuid"}, {"dev", "nodev"}, {"exec", "noexec"}, {"async", "sync"},
	{"atime", "noatime"}, {"diratime", "nodiratime"}, {"norelatime", "relatime"}, {"nostrictatime", "strictatime"},
	{"noatime", "relatime"}, {"noatime", "strictatime"}, {"relatime", "strictatime"}}

// mountSettings are the options of the form KEY=VALUE.
var mountSettings = []string{"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "ptmxmode"}

// IsBind reports whether a mount is a bind mount.
func IsBind(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

func checkDestination(v reflect.Value) error {
	if err := absolutePath(v.String()); err != nil {
		return err
	}
	if cleanPath(v.String()) == "/" {
		return fmt.Errorf("%q: nothing can be mounted over the root", v.String())
	}
	return nil
}

func checkMountOptions(v reflect.Value) error {
	for i := range v.Len() {
		o := v.Index(i).String()
		key, value, setting := strings.Cut(o, "=")
		if setting && slices.Contains(mountSettings, key) && value != "" && !strings.ContainsAny(value, ",\\ \t\n") {
			continue
		}
		if setting || !slices.Contains(mountFlags, o) {
			return fmt.Errorf("%q: %w as an option", o, ErrRefused)
		}
	}
	has := func(o string) bool {
		for i := range v.Len() {
			if v.Index(i).String() == o {
				return true
			}
		}
		return false
	}
	for _, pair := range excluding {
		if has(pair[0]) && has(pair[1]) {
			return fmt.Errorf("%q and %q exclude each other", pair[0], pair[1])
		}
	}
	return nil
}

// checkMount checks dependencies between the fields of a mount.
func checkMount(m specs.Mount, ownGroups bool) error {
	to := cleanPath(m.Destination)
	home, system := systemMounts[m.Type]
	switch {
	case m.Destination == "":
		return fmt.Errorf("it has no destination")
	case IsBind(m):
		if err := absolutePath(m.Source); err != nil {
			return fmt.Errorf("source %w", err)
		}
		if m.Type != "" && m.Type != "bind" && m.Type != "none" {
			return fmt.Errorf("%s: it is of type %q and has the option of a bind", to, m.Type)
		}
	case system && to != home:
		return fmt.Errorf("%s: %q can be mounted at %s only", to, m.Type, home)
	case !system && m.Type != "tmpfs":
		return fmt.Errorf("%s: type %q: %w; use bind or tmpfs", to, m.Type, ErrRefused)
	}
	if (to == "/proc" || strings.HasPrefix(to, "/proc/")) && m.Type != "proc" {
		return fmt.Errorf("%s: nothing can be mounted over /proc and in it", to)
	}
	if strings.HasPrefix(m.Type, "cgroup") && !ownGroups && !slices.Contains(m.Options, "ro") {
		return fmt.Errorf("%s: without a cgroup namespace it has to be read-only", to)
	}
	return nil
}

// SamePlace reports whether two mount destinations are the same path.
func SamePlace(a, b string) bool { return cleanPath(a) == cleanPath(b) }
