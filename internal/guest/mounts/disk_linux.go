package mounts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/hostmount"
)

// propagations are the mount options that have an effect; others are ignored.
var propagations = map[string]uintptr{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC,
	"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
	"unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

func (t *Table) addDisk(ctx context.Context, s hcsschema.LCOWMappedVirtualDisk) error {
	switch {
	case s.Encrypted:
		return fmt.Errorf("encrypted disks: %w", gcsserver.ErrUnsupported)
	case s.Filesystem != "" && !knownFilesystem(s.Filesystem):
		return fmt.Errorf("file system %q: %w", s.Filesystem, gcsserver.ErrUnsupported)
	case s.EnsureFilesystem && (s.ReadOnly || s.BlockDev || s.Filesystem == ""):
		return fmt.Errorf("a disk can be formatted only if it is writable, mounted, and the file system is named: %w",
			gcsserver.ErrInvalid)
	case s.VerityInfo != nil && !s.ReadOnly:
		return fmt.Errorf("a disk protected by verity has to be read-only: %w", gcsserver.ErrInvalid)
	}
	if s.MountPath != "" {
		if err := t.CheckPath(s.MountPath); err != nil {
			return err
		}
		if same, err := t.have(s.MountPath, s); same || err != nil {
			return err
		}
	}
	t.load("virtio_scsi")
	t.load("sd_mod")
	device, err := t.devices.disk(ctx, s.Controller, s.Lun, s.Partition)
	if err != nil || s.MountPath == "" {
		return err
	}
	m := mounted{settings: s, what: gcs.Mount{Kind: "scsi", Controller: s.Controller, Lun: s.Lun,
		Partition: s.Partition, ReadOnly: s.ReadOnly, BlockDev: s.BlockDev}}
	if s.VerityInfo != nil {
		name := fmt.Sprintf("dm-verity-scsi-contr%d-lun%d-p%d-%s", s.Controller, s.Lun, s.Partition, s.VerityInfo.RootDigest)
		if device, err = t.verity(name, device, *s.VerityInfo, &m); err != nil {
			return err
		}
	}
	if s.BlockDev {
		err = linkDevice(device, s.MountPath)
	} else {
		err = t.mountDevice(ctx, device, s)
	}
	if err != nil {
		return errors.Join(err, m.undoAll())
	}
	t.note(s.MountPath, m)
	return nil
}

// undoAll undoes a failed Add.
func (m *mounted) undoAll() error {
	var errs []error
	for _, u := range m.undo {
		errs = append(errs, u())
	}
	return errors.Join(errs...)
}

func linkDevice(device, path string) error {
	dir, err := makePath(filepath.Dir(path), 0o700)
	if err != nil {
		return err
	}
	if err := unix.Symlinkat(device, int(dir.dir.Fd()), filepath.Base(path)); err != nil {
		dir.undo()
		return fmt.Errorf("link %s to %s: %w", path, device, err)
	}
	dir.close()
	return nil
}

// mountDevice mounts a device by the file system it is found to have, and formats it first if the request says so.
func (t *Table) mountDevice(ctx context.Context, device string, s hcsschema.LCOWMappedVirtualDisk) error {
	fstype, err := probe(device)
	if err != nil {
		return fmt.Errorf("find out the file system of SCSI disk %d:%d: %w", s.Controller, s.Lun, err)
	}
	switch {
	case s.EnsureFilesystem && fstype != s.Filesystem:
		if err := t.format(ctx, device, s.Filesystem); err != nil {
			return fmt.Errorf("format SCSI disk %d:%d: %w", s.Controller, s.Lun, err)
		}
		fstype = s.Filesystem
	case s.Filesystem != "":
		fstype = s.Filesystem
	case fstype == "":
		return fmt.Errorf("SCSI disk %d:%d partition %d holds no file system this guest knows (ext4, xfs, erofs, "+
			"squashfs): %w",
			s.Controller, s.Lun, s.Partition, gcsserver.ErrInvalid)
	}
	return t.mountAt(device, s.MountPath, fstype, s.ReadOnly, "", s.Options)
}

// mountAt mounts a device at a path. It creates missing directories, and removes them on error.
func (t *Table) mountAt(device, path, fstype string, readOnly bool, data string, options []string) error {
	t.load(fstype)
	if err := checkSuperblock(device, fstype, readOnly); err != nil {
		return fmt.Errorf("%s (%s) for %s: %w", device, fstype, path, err)
	}
	dir, err := makePath(path, 0o700)
	if err != nil {
		return err
	}
	flags := uintptr(unix.MS_NODEV) // device nodes in an image would open disks of other containers
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	if o := hostmount.MountOptions(fstype, readOnly); len(o) > 0 {
		data = strings.TrimSuffix(strings.Join(o, ",")+","+data, ",")
	}
	if err := unix.Mount(device, fdPath(dir.dir), fstype, flags, data); err != nil {
		dir.undo()
		return fmt.Errorf("mount %s (%s) at %s: %w", device, fstype, path, err)
	}
	for _, o := range options {
		if flag, ok := propagations[o]; ok {
			// By path: the open directory is the one under the mount.
			if err := unix.Mount("", path, "", flag, ""); err != nil {
				err = fmt.Errorf("make %s %s: %w", path, o, err)
				err = errors.Join(err, t.unmountAll(path))
				dir.undo()
				return err
			}
		}
	}
	dir.close()
	return nil
}

func (t *Table) removeDisk(_ context.Context, s hcsschema.LCOWMappedVirtualDisk) error {
	if s.MountPath == "" {
		return nil // the disk itself goes by SCSIDevice
	}
	err := t.removeMount(s.MountPath, func(m gcs.Mount) bool {
		return m.Kind == "scsi" && m.Controller == s.Controller && m.Lun == s.Lun && m.Partition == s.Partition
	})
	if err == nil {
		t.rootGone(s.MountPath) // it may have been a container's root
	}
	return err
}

func (t *Table) removeSCSI(_ context.Context, s hcsschema.SCSIDevice) error {
	t.mu.Lock()
	var at []string
	for p, m := range t.mounts {
		if m.what.Kind == "scsi" && m.what.Controller == s.Controller && m.what.Lun == s.Lun {
			at = append(at, p)
		}
	}
	t.mu.Unlock()
	if len(at) > 0 {
		slices.Sort(at)
		return fmt.Errorf("SCSI disk %d:%d is %w: mounted at %v", s.Controller, s.Lun, gcsserver.ErrBusy, at)
	}
	return t.devices.eject(s.Controller, s.Lun)
}

func (t *Table) addPMEM(ctx context.Context, s hcsschema.LCOWMappedVPMemDevice) error {
	if err := t.CheckPath(s.MountPath); err != nil {
		return err
	}
	if same, err := t.have(s.MountPath, s); same || err != nil {
		return err
	}
	t.load("virtio_pmem")
	t.load("nd_pmem")
	device, err := t.devices.pmemDevice(ctx, s.DeviceNumber)
	if err != nil {
		return err
	}
	m := mounted{settings: s, what: gcs.Mount{Kind: "pmem", Slot: s.DeviceNumber, ReadOnly: true}}
	err = func() error {
		if i := s.MappingInfo; i != nil {
			m.what.Offset, m.what.Size = i.DeviceOffsetInBytes, i.DeviceSizeInBytes
			name := fmt.Sprintf("dm-linear-pmem%d-%d-%d", s.DeviceNumber, i.DeviceOffsetInBytes, i.DeviceSizeInBytes)
			if device, err = t.linear(name, device, i.DeviceOffsetInBytes, i.DeviceSizeInBytes, &m); err != nil {
				return err
			}
		}
		if s.VerityInfo != nil {
			name := fmt.Sprintf("dm-verity-pmem%d-%s", s.DeviceNumber, s.VerityInfo.RootDigest)
			if s.MappingInfo != nil {
				name = fmt.Sprintf("dm-verity-pmem%d-%d-%s", s.DeviceNumber, m.what.Offset, s.VerityInfo.RootDigest)
			}
			if device, err = t.verity(name, device, *s.VerityInfo, &m); err != nil {
				return err
			}
		}
		fstype, err := probe(device)
		if err != nil {
			return err
		}
		if fstype == "" {
			return fmt.Errorf("persistent memory slot %d holds no file system this guest knows: %w", s.DeviceNumber,
				gcsserver.ErrInvalid)
		}
		return t.mountAt(device, s.MountPath, fstype, true, "", nil)
	}()
	if err != nil {
		return errors.Join(err, m.undoAll())
	}
	t.note(s.MountPath, m)
	return nil
}

func (t *Table) removePMEM(_ context.Context, s hcsschema.LCOWMappedVPMemDevice) error {
	var offset uint64
	if s.MappingInfo != nil {
		offset = s.MappingInfo.DeviceOffsetInBytes
	}
	return t.removeMount(s.MountPath, func(m gcs.Mount) bool {
		return m.Kind == "pmem" && m.Slot == s.DeviceNumber && m.Offset == offset
	})
}

func (t *Table) addCombined(_ context.Context, s hcsschema.LCOWCombinedLayers) error {
	paths := []string{s.ContainerRootPath}
	if s.ScratchPath != "" {
		paths = append(paths, s.ScratchPath)
	}
	m := mounted{settings: s, what: gcs.Mount{Kind: "overlay", ContainerID: s.ContainerID, Layers: len(s.Layers),
		ScratchPath: s.ScratchPath, ReadOnly: s.ScratchPath == ""}}
	var layers []string
	for _, l := range s.Layers {
		layers = append(layers, l.Path)
	}
	m.layers = append(slices.Clone(layers), paths[1:]...)
	for _, p := range append(paths, layers...) {
		if err := t.CheckPath(p); err != nil {
			return err
		}
	}
	if same, err := t.have(s.ContainerRootPath, s); same || err != nil {
		return err
	}
	if err := t.combinable(s.ScratchPath, m.layers); err != nil {
		return err
	}
	t.load("overlay")
	empty, err := t.emptyDir()
	if err != nil {
		return err
	}
	if err := overlay(s.ContainerRootPath, layers, s.ScratchPath, empty); err != nil {
		return err
	}
	t.note(s.ContainerRootPath, m)
	return nil
}

// combinable returns an error if another overlay uses the scratch, or if a part, which the scratch is one of, is not on
// a mount of the host: it would be in the guest's memory, and what containers write would be lost.
func (t *Table) combinable(scratch string, parts []string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p, o := range t.mounts {
		if scratch != "" && o.what.ScratchPath == scratch {
			return fmt.Errorf("scratch %s is %w: %s", scratch, gcsserver.ErrBusy, p)
		}
	}
	for _, part := range parts {
		at := part
		for ; at != "/"; at = filepath.Dir(at) {
			if m, ok := t.mounts[at]; ok && !m.what.BlockDev {
				break
			}
		}
		if at == "/" {
			return fmt.Errorf("%s is on no disk or share that is mounted here; mount it first: %w", part, gcsserver.ErrInvalid)
		}
	}
	return nil
}

func (t *Table) removeCombined(_ context.Context, s hcsschema.LCOWCombinedLayers) error {
	err := t.removeMount(s.ContainerRootPath, func(m gcs.Mount) bool { return m.Kind == "overlay" })
	if err == nil {
		t.rootGone(s.ContainerRootPath)
	}
	return err
}

// rootGone cleans up after a root that was unmounted: it removes its containers, and its parent directory if that is
// empty and no mount point.
func (t *Table) rootGone(root string) {
	if _, mounted := mountedDevice(root); mounted {
		return // something else is mounted there
	}
	t.procs.RootGone(root)
	if filepath.Base(root) == "rootfs" {
		_ = atParent(filepath.Dir(root), removeEmpty) // a mount point stays
	}
}

// sizeOf returns the size of a block device or file in bytes.
func sizeOf(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, 2)
}
