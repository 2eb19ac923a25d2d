package procs

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// pausePath is where containers have the pause program: beside ocispec.InitPath.
const pausePath = "/dev/.strata-pause"

// beginPause starts an instance whose first process, the pause process, only waits and reaps orphans.
func (i *instance) beginPause() error {
	ctx, cancel := context.WithTimeout(context.Background(), cmp.Or(i.t.crun.Timeout, runtimeTime))
	defer cancel()
	_, err := i.begin(ctx, nil, command{Args: []string{pausePath, "-P"}}, &stdioPipes{})
	if err != nil {
		return fmt.Errorf("begin container %s: %w", i.c.id, err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.pauses = true
	return nil
}

// addPause adds the pause program to a spec.
func (t *Table) addPause(spec *specs.Spec) error {
	return addProgram(spec, pausePath, t.pause)
}

// addProgram adds a read-only bind mount of a program of this system to a spec. path must be below /dev, a tmpfs.
func addProgram(spec *specs.Spec, path, source string) error {
	inMemory := func(m specs.Mount) bool { return m.Type == "tmpfs" && filepath.Clean(m.Destination) == "/dev" }
	if !slices.ContainsFunc(spec.Mounts, inMemory) {
		return fmt.Errorf("its document has no /dev in memory, where the program that begins it is: %w",
			gcsserver.ErrInvalid)
	}
	spec.Mounts = append(slices.Clip(spec.Mounts), specs.Mount{Destination: path, Type: "bind", Source: source,
		Options: []string{"bind", "ro", "nosuid", "nodev"}})
	return nil
}

// onlyPauses reports whether the pause process is the only process of the instance.
func (i *instance) onlyPauses() bool {
	i.mu.Lock()
	pid, pauses := i.pid, i.pauses && !i.closing
	i.mu.Unlock()
	return pauses && aloneIn(filepath.Join(cgroupRoot, cgroupOf(i.bundle.Dir)), pid)
}

// cgroupRoot is where control groups are mounted.
const cgroupRoot = "/sys/fs/cgroup"

// aloneIn reports whether a process is the only one in a cgroup v2 group and its descendants.
func aloneIn(dir string, pid int) bool {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case path != dir && errors.Is(err, os.ErrNotExist): // the container may make and remove cgroups of its own
			return nil
		case err != nil:
			return err
		case d.IsDir():
			return onlyProcess(filepath.Join(path, "cgroup.procs"), pid)
		}
		return nil
	})
	return err == nil
}

// errOthers is returned by onlyProcess.
var errOthers = errors.New("other processes are in the cgroup")

// onlyProcess returns an error if a cgroup.procs file lists another process than pid. A missing file is empty.
func onlyProcess(list string, pid int) error {
	f, err := os.Open(list)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if lines.Text() != strconv.Itoa(pid) {
			return errOthers
		}
	}
	return lines.Err()
}
