package mounts

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// Processes is what the table needs of the processes in the guest.
type Processes interface {
	// Any reports whether any process of a host runs.
	Any() bool
	// InRoot returns the container that runs in a root, or "", and its programs. It waits for containers that are
	// ending, so that they do not keep mounts busy.
	InRoot(root string) (container string, programs []string)
	// RootGone removes the containers of a root that was unmounted.
	RootGone(root string)
	// Run runs a program of the guest, such as mkfs, to its end.
	Run(ctx context.Context, path string, args ...string) error
	// Passing reports whether a command line is that of a process that ends by itself with the last other process of
	// its container.
	Passing(commandLine string) bool
}

// Config configures a Table.
type Config struct {
	Base    string // the directory below which hosts may mount: /run
	Devices *Devices
	Load    func(feature string) // loads the kernel modules of a feature; nil: there are none
}

// Table has all mounts made for hosts. Its methods may be called concurrently.
type Table struct {
	base    string
	devices *Devices
	load    func(feature string)
	procs   Processes
	targets keyedLocks
	changes changes

	// copying is read-locked while a new mount namespace still has its copy of all mounts, and write-locked during an
	// unmount.
	copying sync.RWMutex

	mu     sync.Mutex
	mounts map[string]mounted
}

// mounted is a mount that a host requested.
type mounted struct {
	what     gcs.Mount
	settings any            // of the Add; another Add with equal settings succeeds
	layers   []string       // of an overlay, with its scratch: paths that it keeps in use
	undo     []func() error // removes device-mapper devices after the unmount, in order
	dev      uint64         // device number of the file system
	leaving  bool           // it is being unmounted: no container may start in it
}

// New returns an empty table. SetProcesses must be called before its first request.
func New(c Config) *Table {
	if c.Load == nil {
		c.Load = func(string) {}
	}
	return &Table{base: c.Base, devices: c.Devices, load: c.Load, mounts: map[string]mounted{}}
}

// SetProcesses sets the processes. It is separate from New because they in turn need the table for their roots.
func (t *Table) SetProcesses(p Processes) { t.procs = p }

// Modify implements gcsserver.Runtime.
func (t *Table) Modify(ctx context.Context, m gcsserver.Modification, dial gcsserver.Dialer) error {
	remove := m.RequestType == hcsschema.RequestRemove
	if !remove && m.RequestType != hcsschema.RequestAdd {
		return fmt.Errorf("request type %q: %w", m.RequestType, gcsserver.ErrUnsupported)
	}
	switch m.ResourceType {
	case hcsschema.ResourceMappedVirtualDisk:
		return modify(ctx, t, m, remove, t.addDisk, t.removeDisk)
	case hcsschema.ResourceVPMemDevice:
		return modify(ctx, t, m, remove, t.addPMEM, t.removePMEM)
	case hcsschema.ResourceCombinedLayers:
		return modify(ctx, t, m, remove, t.addCombined, t.removeCombined)
	case hcsschema.ResourceMappedDirectory:
		return modify(ctx, t, m, remove,
			func(ctx context.Context, s hcsschema.LCOWMappedDirectory) error { return t.addDirectory(ctx, s, dial) },
			func(_ context.Context, s hcsschema.LCOWMappedDirectory) error { return t.removeMount(s.MountPath, nil) })
	case hcsschema.ResourceVirtioFS:
		return modify(ctx, t, m, remove, t.addVirtioFS, t.removeVirtioFS)
	case hcsschema.ResourceSCSIDevice:
		if !remove {
			return fmt.Errorf("SCSIDevice knows Remove only: %w", gcsserver.ErrUnsupported)
		}
		return modify(ctx, t, m, remove, nil, t.removeSCSI)
	}
	return fmt.Errorf("resource type %q: %w", m.ResourceType, gcsserver.ErrUnsupported)
}

// modify decodes the settings and calls add or remove under the lock of what they act on.
func modify[S any](ctx context.Context, t *Table, m gcsserver.Modification, remove bool,
	add, rm func(context.Context, S) error) error {
	var s S
	if err := gcsserver.Decode(m.Settings, &s); err != nil {
		return err
	}
	ctx, unlock := t.targets.lock(ctx, targetOf(s), remove)
	defer unlock()
	if remove {
		return rm(ctx, s)
	}
	return add(ctx, s)
}

// targetOf returns the lock key of a request: requests with the same key are serialized.
func targetOf(settings any) string {
	path := ""
	switch s := settings.(type) {
	case hcsschema.LCOWMappedVirtualDisk:
		if path = s.MountPath; path == "" {
			return fmt.Sprintf("scsi %d:%d", s.Controller, s.Lun)
		}
	case hcsschema.SCSIDevice:
		return fmt.Sprintf("scsi %d:%d", s.Controller, s.Lun)
	case hcsschema.LCOWMappedVPMemDevice:
		path = s.MountPath
	case hcsschema.LCOWMappedDirectory:
		path = s.MountPath
	case hcsschema.LCOWVirtioFS:
		path = s.MountPath
	case hcsschema.LCOWCombinedLayers:
		path = s.ContainerRootPath
	}
	return "path " + path
}

// have reports whether a mount with equal settings is at path already. Another mount there is an error.
func (t *Table) have(path string, settings any) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m, ok := t.mounts[path]
	switch {
	case !ok:
		return false, nil
	case reflect.DeepEqual(m.settings, settings):
		return true, nil
	}
	return false, fmt.Errorf("%s holds %s: %w", path, describe(m.what), gcsserver.ErrExists)
}

func describe(m gcs.Mount) string {
	switch m.Kind {
	case "scsi":
		return fmt.Sprintf("SCSI disk %d:%d partition %d", m.Controller, m.Lun, m.Partition)
	case "pmem":
		return fmt.Sprintf("persistent memory slot %d", m.Slot)
	case "directory":
		return "share " + m.Share
	case "virtiofs":
		return "virtiofs " + m.Share
	}
	return "a combined root of " + m.ContainerID
}

func (t *Table) note(path string, m mounted) {
	m.what.Path = path
	m.dev, _ = mountedDevice(path)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mounts[path] = m
}

// removeMount unmounts path if same reports that its mount is the one the host means, or same is nil. A missing or
// other mount is no error.
func (t *Table) removeMount(path string, same func(gcs.Mount) bool) error {
	if err := t.CheckPath(path); err != nil {
		return err
	}
	t.mu.Lock()
	m, ok := t.mounts[path]
	t.mu.Unlock()
	if !ok {
		return t.unmountUnknown(path)
	}
	if same != nil && !same(m.what) {
		return nil // the mount that the host means does not exist
	}
	// Before checking that it is free, so that no container starts in between.
	t.setLeaving(path, true)
	defer t.setLeaving(path, false) // in case it stays
	if err := t.free(path, m); err != nil {
		return err
	}
	if m.what.BlockDev {
		if err := atParent(path, unix.Unlink); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("remove the link %s: %w", path, err)
		}
	} else if err := t.unmount(path, m.dev); err != nil {
		return err
	}
	for len(m.undo) > 0 {
		if err := m.undo[0](); err != nil {
			t.keep(path, m)
			return err
		}
		m.undo = m.undo[1:]
	}
	t.mu.Lock()
	delete(t.mounts, path)
	t.mu.Unlock()
	return nil
}

func (t *Table) setLeaving(path string, leaving bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m, ok := t.mounts[path]; ok {
		m.leaving = leaving
		t.mounts[path] = m
	}
}

// keep records a mount with the undo steps that are left for the next attempt.
func (t *Table) keep(path string, m mounted) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mounts[path] = m
}

// unmountUnknown unmounts a path at which the agent has mounted nothing. A process in the VM may have.
func (t *Table) unmountUnknown(path string) error {
	return t.unmount(path, 0)
}

// unmount unmounts what is at a path, unless a process in another mount namespace has the file system with device
// number dev mounted too, which would keep its device in use. It waits for containers that are being started: they have
// a copy of all mounts until they have changed to their root.
func (t *Table) unmount(path string, dev uint64) error {
	t.copying.Lock()
	defer t.copying.Unlock()
	if dev != 0 && t.procs.Any() {
		if who := otherNamespaces(dev); len(who) > 0 {
			return fmt.Errorf("%s is %w: %s", path, gcsserver.ErrBusy, strings.Join(who, ", "))
		}
	}
	return t.unmountAll(path)
}

// free returns an error if a container or another mount uses a mount.
func (t *Table) free(path string, m mounted) error {
	if container, programs := t.procs.InRoot(path); container != "" {
		names := t.users(m.dev, os.Getpid())
		if len(names) == 0 { // no process found: name the programs as the host knows them
			names = programs
		}
		return fmt.Errorf("%s is %w by container %s: %s", path, gcsserver.ErrBusy, container, strings.Join(names, ", "))
	}
	t.mu.Lock()
	var above []string
	for other, o := range t.mounts {
		if other == path {
			continue
		}
		if within(other, path) || slices.ContainsFunc(o.layers, func(l string) bool { return within(l, path) }) {
			above = append(above, other)
		}
	}
	t.mu.Unlock()
	if len(above) > 0 {
		slices.Sort(above)
		return fmt.Errorf("%s is %w by %s", path, gcsserver.ErrBusy, strings.Join(above, ", "))
	}
	return nil
}

// within reports whether path is dir or below it.
func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// Hold blocks unmounting until release is called, for a process that starts with a copy of all mounts. It returns an
// error if root is not mounted or is being unmounted.
func (t *Table) Hold(root string) (release func(), err error) {
	t.copying.RLock()
	if err := t.usable(root); err != nil {
		t.copying.RUnlock()
		return nil, err
	}
	return t.copying.RUnlock, nil
}

// Still blocks unmounting until release is called.
func (t *Table) Still() (release func()) {
	t.copying.RLock()
	return t.copying.RUnlock
}

// usable returns an error if a container's root is not mounted or is being unmounted. The caller must hold t.copying.
func (t *Table) usable(root string) error {
	t.mu.Lock()
	leaving := t.mounts[root].leaving
	t.mu.Unlock()
	if leaving {
		return fmt.Errorf("its root %s is %w: it is being unmounted", root, gcsserver.ErrBusy)
	}
	if _, ok := mountedDevice(root); !ok {
		return fmt.Errorf("nothing is mounted at its root %s: %w", root, gcsserver.ErrNotFound)
	}
	return nil
}

// RemoveDir removes the directory of a container if it is empty. It unmounts nothing.
func (t *Table) RemoveDir(container string) {
	_ = atParent(filepath.Join(t.base, "gcs/c", container), removeEmpty)
}

// UnmountAll unmounts what can be unmounted, overlays first, and syncs. It is called before the machine stops.
func (t *Table) UnmountAll() {
	t.mu.Lock()
	paths := make([]string, 0, len(t.mounts))
	overlays := map[string]bool{}
	for p, m := range t.mounts {
		paths = append(paths, p)
		overlays[p] = m.what.Kind == "overlay"
	}
	t.mu.Unlock()
	slices.SortFunc(paths, func(a, b string) int { // overlays first, then the deepest
		if overlays[a] != overlays[b] {
			if overlays[a] {
				return -1
			}
			return 1
		}
		return strings.Count(b, "/") - strings.Count(a, "/")
	})
	for _, p := range paths {
		_ = unix.Unmount(p, unix.UMOUNT_NOFOLLOW)
	}
	unix.Sync()
}

// emptyDir returns an empty directory, for overlays that need a second layer.
func (t *Table) emptyDir() (string, error) {
	p := filepath.Join(t.base, "strata-empty")
	err := os.Mkdir(p, 0o555)
	if os.IsExist(err) {
		err = nil
	}
	return p, err
}
