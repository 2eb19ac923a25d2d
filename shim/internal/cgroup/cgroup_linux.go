// Package cgroup manages a pod's control group on the host, of cgroup v1 or v2. A shim joins it, and with it its child
// processes: the VM and the servers of shares.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ErrSystemd is matched by errors about a group in systemd's notation (slice:prefix:name), which only systemd may
// create.
var ErrSystemd = errors.New("control groups of systemd are not supported: use the driver cgroupfs")

// ErrInUse is matched by Remove's error if the group still has processes.
var ErrInUse = errors.New("processes are in it")

// mountPoint is where cgroup v2 is mounted.
const mountPoint = "/sys/fs/cgroup"

// clean returns the path of a group below the root of the hierarchies. name is a linux.cgroupsPath; the root itself is
// an error.
func clean(name string) (string, error) {
	if strings.Contains(name, ":") { // slice:prefix:name
		return "", fmt.Errorf("control group %q: %w", name, ErrSystemd)
	}
	p := path.Clean("/" + name)
	if p == "/" {
		return "", fmt.Errorf("control group %q is that of the whole system", name)
	}
	return p, nil
}

// Makes reports whether Join would create a control group: it exists in no hierarchy.
func Makes(name string) bool {
	p, err := clean(name)
	if err != nil {
		return false
	}
	if cgroups.Mode() == cgroups.Unified {
		return missing2(mountPoint, p)
	}
	_, err = cgroup1.Load(cgroup1.StaticPath(p), allowAny)
	return errors.Is(err, cgroup1.ErrCgroupDeleted)
}

func missing2(mountPoint, p string) bool {
	_, err := os.Lstat(path.Join(mountPoint, p))
	return errors.Is(err, os.ErrNotExist)
}

// Join moves this process into a control group, and creates the group if it does not exist.
func Join(name string) error {
	p, err := clean(name)
	if err != nil {
		return err
	}
	if cgroups.Mode() == cgroups.Unified {
		err = join2(mountPoint, p)
	} else {
		err = join1(p)
	}
	if err != nil {
		return fmt.Errorf("join control group %s: %w; a container that names none needs none (ctr run --cgroup \"\")", p, err)
	}
	return nil
}

func join1(p string) error {
	g, err := cgroup1.New(cgroup1.StaticPath(p), &specs.LinuxResources{}, allowAny)
	if err != nil {
		return err
	}
	return g.AddProc(uint64(os.Getpid()))
}

func join2(mountPoint, p string) error {
	g, err := cgroup2.NewManager(mountPoint, p, &cgroup2.Resources{})
	if err != nil {
		return err
	}
	return g.AddProc(uint64(os.Getpid()))
}

// allowAny accepts whichever cgroup v1 hierarchies are mounted.
func allowAny(c *cgroup1.InitConfig) error {
	c.InitCheck = cgroup1.AllowAny
	return nil
}

// Stat returns the metrics of a control group, of the type for the host's cgroup version. A group that does not exist
// is an error.
func Stat(name string) (any, error) {
	p, err := clean(name)
	if err != nil {
		return nil, err
	}
	var m any
	if cgroups.Mode() == cgroups.Unified {
		m, err = stat2(mountPoint, p)
	} else {
		m, err = stat1(p)
	}
	if err != nil {
		return nil, fmt.Errorf("statistics of control group %s: %w", p, err)
	}
	return m, nil
}

func stat1(p string) (any, error) {
	g, err := cgroup1.Load(cgroup1.StaticPath(p), allowAny)
	if err != nil {
		return nil, err
	}
	return g.Stat(cgroup1.IgnoreNotExist)
}

func stat2(mountPoint, p string) (any, error) {
	g, err := cgroup2.Load(p, cgroup2.WithMountpoint(mountPoint))
	if err != nil {
		return nil, err
	}
	return g.Stat()
}

// retry is the interval between attempts to remove a group, whose last process may still be exiting.
const retry = 10 * time.Millisecond

// Remove removes a control group. It blocks until the group is empty or ctx ends; then the error matches ErrInUse. A
// group that does not exist, or whose name Join refuses, is no error.
func Remove(ctx context.Context, name string) error {
	p, err := clean(name)
	if err != nil {
		return nil
	}
	for {
		if err = remove(p); err == nil {
			return nil
		}
		select {
		case <-time.After(retry):
		case <-ctx.Done():
			return fmt.Errorf("remove control group %s: %w", p, err)
		}
	}
}

func remove(p string) error {
	if cgroups.Mode() == cgroups.Unified {
		return remove2(mountPoint, p)
	}
	return remove1(p)
}

func remove1(p string) error {
	g, err := cgroup1.Load(cgroup1.StaticPath(p), allowAny)
	if errors.Is(err, cgroup1.ErrCgroupDeleted) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, s := range g.Subsystems() {
		if in, err := g.Processes(s.Name(), true); err == nil && len(in) > 0 {
			return ErrInUse
		}
	}
	return g.Delete()
}

func remove2(mountPoint, p string) error {
	if _, err := os.Lstat(path.Join(mountPoint, p)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	g, err := cgroup2.Load(p, cgroup2.WithMountpoint(mountPoint))
	if err != nil {
		return err
	}
	if in, err := g.Procs(true); err == nil && len(in) > 0 {
		return ErrInUse
	}
	return g.Delete()
}
