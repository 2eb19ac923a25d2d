package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/stratavm/strata/internal/hostmount"
	"github.com/stratavm/strata/vmm"
)

// Apply implements vmm.Machine.
func (m *Machine) Apply(ctx context.Context, c vmm.Change) error {
	e := &vmm.ApplyError{Change: c}
	if err := errors.Join(m.Err(), ctx.Err()); err != nil {
		e.Err = err
		return e
	}
	var keys []string
	if c.Device != nil {
		keys = append(keys, c.Device.Addr())
	} else if on := vmm.RestsOn(c.Mount); on != "" {
		keys = append(keys, on)
	}
	if c.Mount != nil && c.Mount.Target() != "" {
		keys = append(keys, "mount "+c.Mount.Target())
	}
	slices.Sort(keys)
	unlock, err := m.locks.lock(ctx, keys)
	if err != nil {
		e.Err = err
		return e
	}
	// Mounting can block in the kernel, where no context ends it: the caller does not wait longer
	// than it wants, but the locks are held until the call has come to rest.
	type result struct {
		e   vmm.ApplyError
		err error
	}
	ready := make(chan result, 1)
	go func() {
		defer unlock()
		r := result{e: vmm.ApplyError{Change: c}}
		r.err = m.effect(ctx, c, &r.e)
		ready <- r
	}()
	select {
	case r := <-ready:
		if r.err == nil {
			return nil
		}
		r.e.Err = r.err
		return &r.e
	case <-ctx.Done():
		e.Err = context.Cause(ctx)
		if c.Device != nil {
			e.Host = vmm.Unknown
		}
		if c.Mount != nil {
			e.Guest = vmm.Unknown
		}
		return e
	}
}

// effect does the halves of c in their order and notes in e which are done.
func (m *Machine) effect(ctx context.Context, c vmm.Change, e *vmm.ApplyError) error {
	host := func() error {
		if c.Device == nil {
			return nil
		}
		if err := m.changeDevice(c.Op, c.Device); err != nil {
			return err
		}
		e.Host = vmm.Done
		return nil
	}
	guest := func() error {
		if c.Mount == nil {
			return nil
		}
		if err := m.changeMount(ctx, c.Op, c.Mount); err != nil {
			return err
		}
		e.Guest = vmm.Done
		return nil
	}
	if c.Op == vmm.Remove {
		host, guest = guest, host
	}
	if err := host(); err != nil {
		return err
	}
	return guest()
}

func (m *Machine) changeDevice(op vmm.Op, d vmm.Device) error {
	addr := d.Addr()
	old, err := m.record(devicesDir, addr)
	if err != nil {
		return err
	}
	switch op {
	case vmm.Add:
		if old.Device != nil {
			if !reflect.DeepEqual(old.Device, d) {
				return fmt.Errorf("%s holds %s: %w", addr, old.Device, vmm.ErrOccupied)
			}
			return nil
		}
		if err := checkDevice(d); err != nil {
			return err
		}
		return m.writeRecord(devicesDir, addr, vmm.Change{Device: d})
	case vmm.Remove:
		mounts, err := m.liveMounts()
		if err != nil {
			return err
		}
		for _, g := range mounts {
			if vmm.RestsOn(g) == addr {
				return fmt.Errorf("%s is %w by the mount at %s: unmount that first", addr, vmm.ErrBusy, g.Target())
			}
		}
		return m.removeRecord(devicesDir, addr)
	}
	return fmt.Errorf("%s %s: %w", op, d, errors.ErrUnsupported)
}

func (m *Machine) changeMount(ctx context.Context, op vmm.Op, g vmm.Mount) error {
	target := g.Target()
	if target == "" {
		return nil // a disk that is not mounted: there is nothing to wait for here
	}
	if !strings.HasPrefix(target, "/") || slices.Contains(strings.Split(target, "/"), "..") {
		return fmt.Errorf("the path %q is not absolute, or has %q in it", target, "..")
	}
	old, err := m.record(mountsDir, target)
	if err != nil {
		return err
	}
	points, err := m.mounted()
	if err != nil {
		return err
	}
	path := m.HostPath(target)
	switch op {
	case vmm.Add:
		if points[path] {
			if old.Mount == nil || !reflect.DeepEqual(old.Mount, g) {
				return fmt.Errorf("%s: %w", target, vmm.ErrOccupied)
			}
			return nil
		}
		return m.addMount(ctx, g, path)
	case vmm.Remove:
		if points[path] {
			if err := m.checkUnused(target); err != nil {
				return err
			}
		}
		return m.removeMount(ctx, target, path)
	}
	return fmt.Errorf("%s %s: %w", op, g, errors.ErrUnsupported)
}

// addMount writes the record, mounts, and takes both back when that fails.
func (m *Machine) addMount(ctx context.Context, g vmm.Mount, path string) error {
	if err := m.writeRecord(mountsDir, g.Target(), vmm.Change{Mount: g}); err != nil {
		return err
	}
	err := m.makeDir(path)
	if err == nil {
		err = m.doMount(ctx, g, path)
	}
	if err == nil {
		return nil
	}
	return errors.Join(err, m.removeMount(context.WithoutCancel(ctx), g.Target(), path))
}

func (m *Machine) removeMount(ctx context.Context, target, path string) error {
	if err := m.mount.Unmount(ctx, path); err != nil {
		if errors.Is(err, hostmount.ErrBusy) {
			return fmt.Errorf("%w: %w", vmm.ErrBusy, err)
		}
		return err
	}
	m.removeDirs(path)
	return m.removeRecord(mountsDir, target)
}

// makeDir makes the directory of a mount. Meanwhile nobody takes away its parents for being empty;
// another process that does is outdone.
func (m *Machine) makeDir(path string) (err error) {
	m.dirs.Lock()
	defer m.dirs.Unlock()
	for range 10 {
		if err = os.MkdirAll(path, 0o755); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return err
}

// removeDirs removes the directories that were made for a mount, as far as they are there and empty.
func (m *Machine) removeDirs(path string) {
	m.dirs.Lock()
	defer m.dirs.Unlock()
	for top := filepath.Join(m.dir, fsDir); path != top; path = filepath.Dir(path) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return
		}
	}
}

// checkUnused refuses to take a mount away from under a combined root: the kernel would let us, and
// the file would stay in use unseen.
func (m *Machine) checkUnused(target string) error {
	mounts, err := m.liveMounts()
	if err != nil {
		return err
	}
	for _, g := range mounts {
		c, ok := g.(vmm.CombinedLayers)
		if !ok || c.RootPath == target {
			continue
		}
		used := c.ScratchPath == target || strings.HasPrefix(c.ScratchPath, target+"/")
		for _, l := range c.Layers {
			used = used || l.Path == target || strings.HasPrefix(l.Path, target+"/")
		}
		if used {
			return fmt.Errorf("%s is %w by the root %s: remove that first", target, vmm.ErrBusy, c.RootPath)
		}
	}
	return nil
}

func (m *Machine) doMount(ctx context.Context, g vmm.Mount, path string) error {
	switch g := g.(type) {
	case vmm.MappedDisk:
		return m.mountDisk(ctx, g, path)
	case vmm.MappedDirectory:
		c, err := m.record(devicesDir, vmm.RestsOn(g))
		if err != nil {
			return err
		}
		share, ok := c.Device.(vmm.Plan9Share)
		if !ok {
			return fmt.Errorf("there is no share %q", g.Share)
		}
		return m.mount.MountDirectory(ctx, share.Path, path, g.ReadOnly || share.ReadOnly)
	case vmm.CombinedLayers:
		return m.combine(ctx, g, path)
	}
	return fmt.Errorf("%s: %w without a virtual machine", g, errors.ErrUnsupported)
}

// combine mounts the overlay. Upper and work directory lie side by side on the scratch, as in a VM.
func (m *Machine) combine(ctx context.Context, g vmm.CombinedLayers, path string) error {
	points, err := m.mounted()
	if err != nil {
		return err
	}
	var o hostmount.Overlay
	for _, l := range g.Layers {
		lower := m.HostPath(l.Path)
		if !points[lower] {
			return fmt.Errorf("layer %s is not mounted", l.Path)
		}
		o.Lowers = append(o.Lowers, lower)
	}
	if g.ScratchPath != "" {
		scratch := m.HostPath(g.ScratchPath)
		if !slices.ContainsFunc(parents(scratch), func(p string) bool { return points[p] }) {
			return fmt.Errorf("the scratch of %s is not mounted", g.ScratchPath)
		}
		o.Upper, o.Work = filepath.Join(scratch, "upper"), filepath.Join(scratch, "work")
		for _, dir := range []string{o.Upper, o.Work} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
	}
	if len(o.Lowers) == 1 && o.Upper == "" {
		// An overlay needs two, and without one whiteouts would be seen: the directory is empty.
		o.Lowers = append(o.Lowers, path)
	}
	return m.mount.MountOverlay(ctx, o, path)
}

// parents gives a path and all directories above it.
func parents(path string) []string {
	out := []string{path}
	for path != filepath.Dir(path) {
		path = filepath.Dir(path)
		out = append(out, path)
	}
	return out
}
