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

	"github.com/stratavm/strata/internal/applyengine"
	"github.com/stratavm/strata/internal/hostmount"
	"github.com/stratavm/strata/vmm"
)

// Apply implements vmm.Machine. A mount can block in the kernel, where it cannot be interrupted; everything that can be
// cancelled ends with ctx.
func (m *Machine) Apply(ctx context.Context, c vmm.Change) error {
	return m.engine.Run(ctx, c, func(vmm.Change) (h applyengine.Halves, err error) {
		h.Host = func(context.Context) (vmm.Outcome, error) { return outcome(m.changeDevice(c.Op, c.Device)) }
		h.Guest = func(context.Context) (vmm.Outcome, error) { return outcome(m.changeMount(ctx, c.Op, c.Mount)) }
		return h, nil
	})
}

// errNotUndone is matched by the error of a half that failed and could not be rolled back.
var errNotUndone = errors.New("and it could not be taken back")

func outcome(err error) (vmm.Outcome, error) {
	switch {
	case err == nil:
		return vmm.Done, nil
	case errors.Is(err, errNotUndone):
		return vmm.Unknown, err
	}
	return vmm.NotDone, err
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
		return nil // a disk without a mount needs nothing here
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
			if err := m.checkPrograms(ctx, path); err != nil {
				return err
			}
		}
		return m.removeMount(ctx, target, path)
	}
	return fmt.Errorf("%s %s: %w", op, g, errors.ErrUnsupported)
}

// addMount writes the record and mounts. If that fails, it rolls both back.
func (m *Machine) addMount(ctx context.Context, g vmm.Mount, path string) error {
	if err := m.writeRecord(mountsDir, g.Target(), vmm.Change{Mount: g}); err != nil {
		return err
	}
	dir := path
	if _, ok := g.(vmm.NetworkInterface); ok { // its mount point is a file
		dir = filepath.Dir(path)
	}
	err := m.makeDir(dir)
	if err == nil {
		err = m.doMount(ctx, g, path)
	}
	if err == nil {
		return nil
	}
	if undo := m.removeMount(context.WithoutCancel(ctx), g.Target(), path); undo != nil {
		return fmt.Errorf("%w; %w: %w", err, errNotUndone, undo)
	}
	return err
}

func (m *Machine) removeMount(ctx context.Context, target, path string) error {
	if container, ok := strings.CutPrefix(target, (vmm.NetworkInterface{}).Target()); ok {
		if err := m.endNetwork(ctx, container); err != nil {
			return err
		}
	}
	if err := m.mount.Unmount(ctx, path); err != nil {
		if errors.Is(err, hostmount.ErrBusy) {
			return fmt.Errorf("%w: %w", vmm.ErrBusy, err)
		}
		return err
	}
	m.removeDirs(path)
	return m.removeRecord(mountsDir, target)
}

// makeDir creates the directory of a mount. The lock keeps this process from removing empty parents meanwhile; if
// another process removes one, makeDir retries.
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

// removeDirs removes the directories that were created for a mount, as far as they exist and are empty.
func (m *Machine) removeDirs(path string) {
	m.dirs.Lock()
	defer m.dirs.Unlock()
	for top := filepath.Join(m.dir, fsDir); path != top; path = filepath.Dir(path) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return
		}
	}
}

// checkUnused returns an error if a combined root uses the mount at target. The kernel would allow the unmount, and the
// file behind it would stay in use.
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
	case vmm.NetworkInterface:
		return m.addNetwork(ctx, g, path)
	case vmm.CombinedLayers:
		return m.combine(ctx, g, path)
	}
	return fmt.Errorf("%s: %w without a virtual machine", g, errors.ErrUnsupported)
}

// combine mounts the overlay. Its upper and work directories are next to each other on the scratch, as in a VM.
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
		// An overlay needs two lower directories; without an overlay whiteouts would show. The directory at path is
		// empty.
		o.Lowers = append(o.Lowers, path)
	}
	return m.mount.MountOverlay(ctx, o, path)
}

// parents returns a path and all directories above it.
func parents(path string) []string {
	out := []string{path}
	for path != filepath.Dir(path) {
		path = filepath.Dir(path)
		out = append(out, path)
	}
	return out
}
