package procs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/ocispec"
	"github.com/stratavm/strata/vmm"
)

// freezeTime bounds the wait for all processes of a container to be frozen.
const freezeTime = 5 * time.Second

// change calls do with the running instance of a container, while no process can be started in it.
func (t *Table) change(id string, do func(*instance) error) error {
	c, err := t.container(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.run == nil || c.run.ending():
		err = gcsserver.ErrStopped
	case t.crun.NoCgroups:
		err = fmt.Errorf("it has no control group: %w", gcsserver.ErrUnsupported)
	default:
		defer t.still()()
		err = do(c.run)
	}
	if err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	return nil
}

// Pause implements gcsserver.Runtime.
func (t *Table) Pause(ctx context.Context, id string) error {
	return t.change(id, func(i *instance) error {
		if i.paused() {
			return vmm.ErrPaused
		}
		err := i.bundle.Pause(ctx)
		if err == nil {
			err = i.awaitFrozen(ctx)
		}
		if err != nil {
			err = errors.Join(err, i.bundle.Resume(context.WithoutCancel(ctx)))
		}
		return err
	})
}

// Resume implements gcsserver.Runtime.
func (t *Table) Resume(ctx context.Context, id string) error {
	return t.change(id, func(i *instance) error {
		if !i.paused() {
			return vmm.ErrNotPaused
		}
		return i.bundle.Resume(ctx)
	})
}

// Update implements gcsserver.Runtime.
func (t *Table) Update(ctx context.Context, id string, r specs.LinuxResources) error {
	r.Devices = nil // device rules are fixed at the start of the container
	if err := ocispec.CheckResources(&r); err != nil {
		kind := gcsserver.ErrInvalid
		if errors.Is(err, ocispec.ErrRefused) {
			kind = gcsserver.ErrUnsupported
		}
		return fmt.Errorf("container %s: %w: %w", id, kind, err)
	}
	return t.change(id, func(i *instance) error { return i.bundle.Update(ctx, r) })
}

// awaitFrozen waits until all processes of the instance are frozen.
func (i *instance) awaitFrozen(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, freezeTime)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if _, all := frozen(cgroupRoot, cgroupOf(i.bundle.Dir)); all {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-i.exited:
			return gcsserver.ErrStopped
		case <-ctx.Done():
			return fmt.Errorf("not all of its processes could be stopped: %w", context.Cause(ctx))
		}
	}
}

// paused reports whether the instance is paused or is being paused.
func (i *instance) paused() bool {
	asked, _ := frozen(cgroupRoot, cgroupOf(i.bundle.Dir))
	return asked
}

// freezerState returns the freezer file of a cgroup v1 group.
func freezerState(root, group string) string {
	return filepath.Join(root, "freezer", group, "freezer.state")
}

// frozen reports whether a control group, of cgroup v1 or v2, was asked to freeze, and whether all its processes are
// frozen.
func frozen(root, group string) (asked, all bool) {
	if text, err := readBounded(freezerState(root, group)); err == nil {
		state := strings.TrimSpace(string(text))
		return state != "THAWED", state == "FROZEN"
	}
	dir := filepath.Join(root, group)
	freeze, _ := cgroupNumber(filepath.Join(dir, "cgroup.freeze"), "")
	now, _ := cgroupNumber(filepath.Join(dir, "cgroup.events"), "frozen")
	return freeze == 1, freeze == 1 && now == 1
}

// thaw unfreezes a cgroup v1 group whose processes were killed: with v1, a frozen process does not end. It does nothing
// with cgroup v2.
func thaw(root, group string) error {
	err := os.WriteFile(freezerState(root, group), []byte("THAWED"), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
