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

// Processes is what the table has to know of the processes in the guest.
type Processes interface {
	// Any reports whether any process of a host runs.
	Any() bool
	// InRoot returns which container runs in a root, or "", and the programs in it. Containers that are about to
	// end are waited for, so that they do not hold mounts any more.
	InRoot(root string) (container string, programs []string)
	// RootGone ends and forgets the containers of a root that is not mounted any more.
	RootGone(root string)
	// Run runs a program of the guest, such as mkfs, to its end.
	Run(ctx context.Context, path string, args ...string) error
	// Passing reports whether a process, by its command line, ends by itself with the others of its container.
	Passing(commandLine string) bool
}

// Config is what a table works with.
type Config struct {
	Base    string // where hosts may mount: /run
	Devices *Devices
	Load    func(feature string) // loads a kernel module if there is one; nil: there are none
}

// Table is all that is mounted for hosts. Its methods may be called concurrently.
type Table struct {
	base    string
	devices *Devices
	load    func(feature string)
	procs   Processes
	targets keyedLocks
	changes changes

	// copying is read-held while a new namespace has a copy of all mounts, and write-held while
	// something is unmounted.
	copying sync.RWMutex

	mu     sync.Mutex
	mounts map[string]mounted
}

// mounted is what a host asked to be at a path.
type mounted struct {
	what     gcs.Mount
	settings any // of the Add; an equal Add is the same mount
	layers   []string
	undo     []func() error // device-mapper devices to remove after the unmount, in order
	dev      uint64
	leaving  bool // it is being unmounted: nothing starts in it any more
}

// New returns an empty table. Before its first request it has to be told of the processes by SetProcesses.
func New(c Config) *Table {
	if c.Load == nil {
		c.Load = func(string) {}
	}
	return &Table{base: c.Base, devices: c.Devices, load: c.Load, mounts: map[string]mounted{}}
}

// SetProcesses sets where the table asks for processes; these in turn need the table for their roots.
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

// targetOf is what requests exclude each other by.
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

// have looks at what is at a path already: the same (true), nothing, or something else (an error).
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

// removeMount unmounts what is at path if it is what the host means. What is not there is gone already.
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
		return nil // something else is there; what the host means is not
	}
	// Before it is seen to be free, so that no container starts in between.
	t.setLeaving(path, true)
	defer t.setLeaving(path, false) // where it is still there
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

// keep keeps what is left to be done by the next try.
func (t *Table) keep(path string, m mounted) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mounts[path] = m
}

// unmountUnknown is for paths this agent has mounted nothing at: a mount that is there all the same was
// made by a process in the VM.
func (t *Table) unmountUnknown(path string) error {
	return t.unmount(path, 0)
}

// unmount unmounts what is at a path, unless a process with mounts of its own has the file system with a
// device number mounted too: its device would stay in use. A container that is being started has a copy of
// all mounts until its root is made; it is waited for.
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

// free fails when something else still builds on a mount.
func (t *Table) free(path string, m mounted) error {
	if container, programs := t.procs.InRoot(path); container != "" {
		names := t.users(m.dev, os.Getpid())
		if len(names) == 0 { // not found by its root: named as the host knows it
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

// Hold keeps all mounts as they are until release is called, for a process that begins with a copy of them. It
// fails when nothing is mounted at root, or will not be for long.
func (t *Table) Hold(root string) (release func(), err error) {
	t.copying.RLock()
	if err := t.usable(root); err != nil {
		t.copying.RUnlock()
		return nil, err
	}
	return t.copying.RUnlock, nil
}

// Still keeps all mounts as they are until release is called.
func (t *Table) Still() (release func()) {
	t.copying.RLock()
	return t.copying.RUnlock
}

// usable fails when a container's root is not mounted, or will not be for long. t.copying is held.
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

// RemoveDir removes the directory of a container if it is empty. What is mounted stays mounted.
func (t *Table) RemoveDir(container string) {
	_ = atParent(filepath.Join(t.base, "gcs/c", container), removeEmpty)
}

// UnmountAll unmounts everything in reverse order as far as that goes, before the machine stops.
func (t *Table) UnmountAll() {
	t.mu.Lock()
	paths := make([]string, 0, len(t.mounts))
	overlays := map[string]bool{}
	for p, m := range t.mounts {
		paths = append(paths, p)
		overlays[p] = m.what.Kind == "overlay"
	}
	t.mu.Unlock()
	slices.SortFunc(paths, func(a, b string) int { // roots first, then the deepest
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

// emptyDir is a directory with nothing in it, for overlays that need one.
func (t *Table) emptyDir() (string, error) {
	p := filepath.Join(t.base, "strata-empty")
	err := os.Mkdir(p, 0o555)
	if os.IsExist(err) {
		err = nil
	}
	return p, err
}
