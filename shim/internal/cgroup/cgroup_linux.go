// Package cgroup is the control group of a pod on the host, of version 1 or 2. A shim that is in it has its VM and the
// servers of shares there as well, which are its children.
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

// ErrSystemd says that a control group is one that only systemd may make.
var ErrSystemd = errors.New("control groups of systemd are not supported: use the driver cgroupfs")

// ErrInUse says that processes are in a control group.
var ErrInUse = errors.New("processes are in it")

// mountPoint is where the hierarchy of version 2 is.
const mountPoint = "/sys/fs/cgroup"

// clean is a path below the root of the hierarchies, as documents of containers have it. An empty one is no group.
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

// Makes reports whether Join makes a control group: there is none in any hierarchy.
func Makes(name string) bool {
	p, err := clean(name)
	if err != nil {
		return false
	}
	if cgroups.Mode() == cgroups.Unified {
		return makes2(mountPoint, p)
	}
	_, err = cgroup1.Load(cgroup1.StaticPath(p), any1)
	return errors.Is(err, cgroup1.ErrCgroupDeleted)
}

func makes2(mountPoint, p string) bool {
	_, err := os.Lstat(path.Join(mountPoint, p))
	return errors.Is(err, os.ErrNotExist)
}

// Join makes a control group unless there is one, and puts this process into it.
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
	g, err := cgroup1.New(cgroup1.StaticPath(p), &specs.LinuxResources{}, any1)
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

// any1 makes do with the hierarchies of version 1 that there are.
func any1(c *cgroup1.InitConfig) error {
	c.InitCheck = cgroup1.AllowAny
	return nil
}

// Stat says what is used in a control group, as the control groups of the host's version do. One that does not exist is
// an error.
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
	g, err := cgroup1.Load(cgroup1.StaticPath(p), any1)
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

// retry is the time between two tries to remove a group, whose last process may just be ending.
const retry = 10 * time.Millisecond

// Remove removes a control group, once nothing is in it. One that does not exist is no error, nor one that Join refuses.
// Where processes stay in it until ctx ends the error matches ErrInUse.
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
	g, err := cgroup1.Load(cgroup1.StaticPath(p), any1)
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
