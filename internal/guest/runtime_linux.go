package guest

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
)

// linuxRuntime is the Runtime of a Linux guest.
type linuxRuntime struct {
	log      *slog.Logger
	base     string // where hosts may mount: /run
	self     string // this program, to be started again
	devices  *devices
	spawn    *spawner
	load     func(feature string) // loads a kernel module if there is one
	powerOff func() error
	procs    processes
	targets  keyedLocks
	changes  changes

	// copying is read-held while a new namespace has a copy of all mounts, and write-held while
	// something is unmounted.
	copying sync.RWMutex

	mu         sync.Mutex
	mounts     map[string]mounted
	containers map[string]*container
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

func newLinuxRuntime(log *slog.Logger, base, self string, d *devices, s *spawner) *linuxRuntime {
	return &linuxRuntime{log: log, base: base, self: self, devices: d, spawn: s,
		load: func(string) {}, powerOff: func() error { return errUnsupported },
		mounts: map[string]mounted{}, containers: map[string]*container{}}
}

// Modify implements Runtime.
func (r *linuxRuntime) Modify(ctx context.Context, m Modification, dial Dialer) error {
	defer r.changes.begin()()
	remove := m.RequestType == hcsschema.RequestRemove
	if !remove && m.RequestType != hcsschema.RequestAdd {
		return fmt.Errorf("request type %q: %w", m.RequestType, errUnsupported)
	}
	switch m.ResourceType {
	case hcsschema.ResourceMappedVirtualDisk:
		return modify(ctx, r, m, remove, r.addDisk, r.removeDisk)
	case hcsschema.ResourceVPMemDevice:
		return modify(ctx, r, m, remove, r.addPMEM, r.removePMEM)
	case hcsschema.ResourceCombinedLayers:
		return modify(ctx, r, m, remove, r.addCombined, r.removeCombined)
	case hcsschema.ResourceMappedDirectory:
		return modify(ctx, r, m, remove,
			func(ctx context.Context, s hcsschema.LCOWMappedDirectory) error { return r.addDirectory(ctx, s, dial) },
			func(_ context.Context, s hcsschema.LCOWMappedDirectory) error { return r.removeMount(s.MountPath, nil) })
	case hcsschema.ResourceSCSIDevice:
		if !remove {
			return fmt.Errorf("SCSIDevice knows Remove only: %w", errUnsupported)
		}
		return modify(ctx, r, m, remove, nil, r.removeSCSI)
	}
	return fmt.Errorf("resource type %q: %w", m.ResourceType, errUnsupported)
}

// modify decodes the settings and calls add or remove under the lock of what they act on.
func modify[S any](ctx context.Context, r *linuxRuntime, m Modification, remove bool, add, rm func(context.Context, S) error) error {
	var s S
	if err := decode(m.Settings, &s); err != nil {
		return err
	}
	ctx, unlock := r.targets.lock(ctx, targetOf(s), remove)
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
	case hcsschema.LCOWCombinedLayers:
		path = s.ContainerRootPath
	}
	return "path " + path
}

// have looks at what is at a path already: the same (true), nothing, or something else (an error).
func (r *linuxRuntime) have(path string, settings any) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, ok := r.mounts[path]
	switch {
	case !ok:
		return false, nil
	case reflect.DeepEqual(m.settings, settings):
		return true, nil
	}
	return false, fmt.Errorf("%s holds %s: %w", path, describe(m.what), errExists)
}

func describe(m gcs.Mount) string {
	switch m.Kind {
	case "scsi":
		return fmt.Sprintf("SCSI disk %d:%d partition %d", m.Controller, m.Lun, m.Partition)
	case "pmem":
		return fmt.Sprintf("persistent memory slot %d", m.Slot)
	case "directory":
		return "share " + m.Share
	}
	return "a combined root of " + m.ContainerID
}

func (r *linuxRuntime) note(path string, m mounted) {
	m.what.Path = path
	m.dev, _ = mountedDevice(path)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mounts[path] = m
}

// removeMount unmounts what is at path if it is what the host means. What is not there is gone already.
func (r *linuxRuntime) removeMount(path string, same func(gcs.Mount) bool) error {
	if err := r.checkPath(path); err != nil {
		return err
	}
	r.mu.Lock()
	m, ok := r.mounts[path]
	r.mu.Unlock()
	if !ok {
		return r.unmountUnknown(path)
	}
	if same != nil && !same(m.what) {
		return nil // something else is there; what the host means is not
	}
	// Before it is seen to be free, so that no container starts in between.
	r.setLeaving(path, true)
	defer r.setLeaving(path, false) // where it is still there
	if err := r.free(path, m); err != nil {
		return err
	}
	if m.what.BlockDev {
		if err := atParent(path, unix.Unlink); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("remove the link %s: %w", path, err)
		}
	} else if err := r.unmount(path, m.dev); err != nil {
		return err
	}
	for len(m.undo) > 0 {
		if err := m.undo[0](); err != nil {
			r.keep(path, m)
			return err
		}
		m.undo = m.undo[1:]
	}
	r.mu.Lock()
	delete(r.mounts, path)
	r.mu.Unlock()
	return nil
}

func (r *linuxRuntime) setLeaving(path string, leaving bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m, ok := r.mounts[path]; ok {
		m.leaving = leaving
		r.mounts[path] = m
	}
}

// keep keeps what is left to be done by the next try.
func (r *linuxRuntime) keep(path string, m mounted) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mounts[path] = m
}

// unmountUnknown is for paths this agent has mounted nothing at: a mount that is there all the same was
// made by a process in the VM.
func (r *linuxRuntime) unmountUnknown(path string) error {
	return r.unmount(path, 0)
}

// unmount unmounts what is at a path, unless a process with mounts of its own has the file system with a
// device number mounted too: its device would stay in use. A container that is being started has a copy of
// all mounts until its root is made; it is waited for.
func (r *linuxRuntime) unmount(path string, dev uint64) error {
	r.copying.Lock()
	defer r.copying.Unlock()
	if dev != 0 && len(r.procs.running("", true)) > 0 {
		if who := otherNamespaces(dev); len(who) > 0 {
			return fmt.Errorf("%s is %w: %s", path, errBusy, strings.Join(who, ", "))
		}
	}
	return unmount(path)
}

// free fails when something else still builds on a mount.
func (r *linuxRuntime) free(path string, m mounted) error {
	for _, c := range r.containersAt(path) {
		if c.settle() {
			names := users(m.dev, os.Getpid())
			if len(names) == 0 { // not found by its root: named as the host knows it
				for _, p := range r.procs.running(c.id, false) {
					names = append(names, fmt.Sprintf("program %d (%s)", p.id, printableName(p.name)))
				}
			}
			return fmt.Errorf("%s is %w by container %s: %s", path, errBusy, c.id, strings.Join(names, ", "))
		}
	}
	r.mu.Lock()
	var above []string
	for other, o := range r.mounts {
		if other == path {
			continue
		}
		if within(other, path) || slices.ContainsFunc(o.layers, func(l string) bool { return within(l, path) }) {
			above = append(above, other)
		}
	}
	r.mu.Unlock()
	if len(above) > 0 {
		slices.Sort(above)
		return fmt.Errorf("%s is %w by %s", path, errBusy, strings.Join(above, ", "))
	}
	return nil
}

// within reports whether path is dir or below it.
func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

func (r *linuxRuntime) containersAt(root string) []*container {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*container
	for _, c := range r.containers {
		if c.root == root {
			out = append(out, c)
		}
	}
	return out
}

// PowerOff implements Runtime: processes are ended, everything is unmounted in reverse order as far as
// that goes, and the machine stops.
func (r *linuxRuntime) PowerOff(ctx context.Context) error {
	for _, p := range r.procs.running("", false) {
		_ = p.signal(int(syscall.SIGKILL))
	}
	r.mu.Lock()
	containers := make([]*container, 0, len(r.containers))
	for _, c := range r.containers {
		containers = append(containers, c)
	}
	paths := make([]string, 0, len(r.mounts))
	overlays := map[string]bool{}
	for p, m := range r.mounts {
		paths = append(paths, p)
		overlays[p] = m.what.Kind == "overlay"
	}
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, c := range containers {
		_ = c.stop(ctx)
	}
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
	return r.powerOff()
}

// keyedLocks let requests for one thing run one after the other.
type keyedLocks struct {
	mu   sync.Mutex
	held map[string]*keyLock
}

type keyLock struct {
	turn   sync.Mutex
	users  int
	cancel context.CancelFunc // of the Add that holds it
}

// lock waits for the turn of key. An Add that is under way, and may be waiting for a device, is given
// up when a Remove comes for the same thing.
func (k *keyedLocks) lock(ctx context.Context, key string, remove bool) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	k.mu.Lock()
	if k.held == nil {
		k.held = map[string]*keyLock{}
	}
	l := k.held[key]
	if l == nil {
		l = &keyLock{}
		k.held[key] = l
	}
	l.users++
	if remove && l.cancel != nil {
		l.cancel()
	}
	k.mu.Unlock()
	l.turn.Lock()
	if !remove {
		k.mu.Lock()
		l.cancel = cancel
		k.mu.Unlock()
	}
	return ctx, func() {
		cancel()
		k.mu.Lock()
		l.cancel = nil
		if l.users--; l.users == 0 {
			delete(k.held, key)
		}
		k.mu.Unlock()
		l.turn.Unlock()
	}
}

// emptyDir is a directory with nothing in it, for overlays that need one.
func (r *linuxRuntime) emptyDir() (string, error) {
	p := filepath.Join(r.base, "strata-empty")
	err := os.Mkdir(p, 0o555)
	if os.IsExist(err) {
		err = nil
	}
	return p, err
}
