package guest

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
	"github.com/stratavm/strata/internal/hostmount"
)

// propagations are the only words of Options that have an effect.
var propagations = map[string]uintptr{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC,
	"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
	"unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

func (r *linuxRuntime) addDisk(ctx context.Context, s hcsschema.LCOWMappedVirtualDisk) error {
	switch {
	case s.Encrypted:
		return fmt.Errorf("encrypted disks: %w", errUnsupported)
	case s.Filesystem != "" && !knownFilesystem(s.Filesystem):
		return fmt.Errorf("file system %q: %w", s.Filesystem, errUnsupported)
	case s.EnsureFilesystem && (s.ReadOnly || s.BlockDev || s.Filesystem == ""):
		return fmt.Errorf("a disk can be formatted only if it is writable, mounted, and the file system is named: %w", errInvalid)
	case s.VerityInfo != nil && !s.ReadOnly:
		return fmt.Errorf("a disk protected by verity has to be read-only: %w", errInvalid)
	}
	if s.MountPath != "" {
		if err := r.checkPath(s.MountPath); err != nil {
			return err
		}
		if same, err := r.have(s.MountPath, s); same || err != nil {
			return err
		}
	}
	r.load("virtio_scsi")
	r.load("sd_mod")
	device, err := r.devices.disk(ctx, s.Controller, s.Lun, s.Partition)
	if err != nil || s.MountPath == "" {
		return err
	}
	m := mounted{settings: s, what: gcs.Mount{Kind: "scsi", Controller: s.Controller, Lun: s.Lun,
		Partition: s.Partition, ReadOnly: s.ReadOnly, BlockDev: s.BlockDev}}
	if s.VerityInfo != nil {
		name := fmt.Sprintf("dm-verity-scsi-contr%d-lun%d-p%d-%s", s.Controller, s.Lun, s.Partition, s.VerityInfo.RootDigest)
		if device, err = r.verity(name, device, *s.VerityInfo, &m); err != nil {
			return err
		}
	}
	if s.BlockDev {
		err = linkDevice(device, s.MountPath)
	} else {
		err = r.mountDevice(ctx, device, s)
	}
	if err != nil {
		return errors.Join(err, m.undoAll())
	}
	r.note(s.MountPath, m)
	return nil
}

// undoAll takes back what an Add that failed has made.
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

// mountDevice finds out what is on a device and mounts it.
func (r *linuxRuntime) mountDevice(ctx context.Context, device string, s hcsschema.LCOWMappedVirtualDisk) error {
	fstype, err := probe(device)
	if err != nil {
		return fmt.Errorf("find out the file system of SCSI disk %d:%d: %w", s.Controller, s.Lun, err)
	}
	switch {
	case s.EnsureFilesystem && fstype != s.Filesystem:
		if err := r.format(ctx, device, s.Filesystem); err != nil {
			return fmt.Errorf("format SCSI disk %d:%d: %w", s.Controller, s.Lun, err)
		}
		fstype = s.Filesystem
	case s.Filesystem != "":
		fstype = s.Filesystem
	case fstype == "":
		return fmt.Errorf("SCSI disk %d:%d partition %d holds no file system this guest knows (ext4, xfs, erofs, squashfs): %w",
			s.Controller, s.Lun, s.Partition, errInvalid)
	}
	return r.mountAt(device, s.MountPath, fstype, s.ReadOnly, "", s.Options)
}

// mountAt mounts a device at a path, which is made with all it takes, and undone when that fails.
func (r *linuxRuntime) mountAt(device, path, fstype string, readOnly bool, data string, options []string) error {
	r.load(fstype)
	if err := checkSuperblock(device, fstype, readOnly); err != nil {
		return fmt.Errorf("%s (%s) for %s: %w", device, fstype, path, err)
	}
	dir, err := makePath(path, 0o700)
	if err != nil {
		return err
	}
	flags := uintptr(unix.MS_NODEV) // a node in an image would open the disks of others
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
			// By the path: the open directory is the one below the mount.
			if err := unix.Mount("", path, "", flag, ""); err != nil {
				err = fmt.Errorf("make %s %s: %w", path, o, err)
				err = errors.Join(err, unmount(path))
				dir.undo()
				return err
			}
		}
	}
	dir.close()
	return nil
}

func (r *linuxRuntime) removeDisk(_ context.Context, s hcsschema.LCOWMappedVirtualDisk) error {
	if s.MountPath == "" {
		return nil // the disk itself goes by SCSIDevice
	}
	return r.removeMount(s.MountPath, func(m gcs.Mount) bool {
		return m.Kind == "scsi" && m.Controller == s.Controller && m.Lun == s.Lun && m.Partition == s.Partition
	})
}

func (r *linuxRuntime) removeSCSI(_ context.Context, s hcsschema.SCSIDevice) error {
	r.mu.Lock()
	var at []string
	for p, m := range r.mounts {
		if m.what.Kind == "scsi" && m.what.Controller == s.Controller && m.what.Lun == s.Lun {
			at = append(at, p)
		}
	}
	r.mu.Unlock()
	if len(at) > 0 {
		slices.Sort(at)
		return fmt.Errorf("SCSI disk %d:%d is %w: mounted at %v", s.Controller, s.Lun, errBusy, at)
	}
	return r.devices.eject(s.Controller, s.Lun)
}

func (r *linuxRuntime) addPMEM(ctx context.Context, s hcsschema.LCOWMappedVPMemDevice) error {
	if err := r.checkPath(s.MountPath); err != nil {
		return err
	}
	if same, err := r.have(s.MountPath, s); same || err != nil {
		return err
	}
	r.load("virtio_pmem")
	r.load("nd_pmem")
	device, err := r.devices.pmemDevice(ctx, s.DeviceNumber)
	if err != nil {
		return err
	}
	m := mounted{settings: s, what: gcs.Mount{Kind: "pmem", Slot: s.DeviceNumber, ReadOnly: true}}
	err = func() error {
		if i := s.MappingInfo; i != nil {
			m.what.Offset, m.what.Size = i.DeviceOffsetInBytes, i.DeviceSizeInBytes
			name := fmt.Sprintf("dm-linear-pmem%d-%d-%d", s.DeviceNumber, i.DeviceOffsetInBytes, i.DeviceSizeInBytes)
			if device, err = r.linear(name, device, i.DeviceOffsetInBytes, i.DeviceSizeInBytes, &m); err != nil {
				return err
			}
		}
		if s.VerityInfo != nil {
			name := fmt.Sprintf("dm-verity-pmem%d-%s", s.DeviceNumber, s.VerityInfo.RootDigest)
			if s.MappingInfo != nil {
				name = fmt.Sprintf("dm-verity-pmem%d-%d-%s", s.DeviceNumber, m.what.Offset, s.VerityInfo.RootDigest)
			}
			if device, err = r.verity(name, device, *s.VerityInfo, &m); err != nil {
				return err
			}
		}
		fstype, err := probe(device)
		if err != nil {
			return err
		}
		if fstype == "" {
			return fmt.Errorf("persistent memory slot %d holds no file system this guest knows: %w", s.DeviceNumber, errInvalid)
		}
		return r.mountAt(device, s.MountPath, fstype, true, "", nil)
	}()
	if err != nil {
		return errors.Join(err, m.undoAll())
	}
	r.note(s.MountPath, m)
	return nil
}

func (r *linuxRuntime) removePMEM(_ context.Context, s hcsschema.LCOWMappedVPMemDevice) error {
	var offset uint64
	if s.MappingInfo != nil {
		offset = s.MappingInfo.DeviceOffsetInBytes
	}
	return r.removeMount(s.MountPath, func(m gcs.Mount) bool {
		return m.Kind == "pmem" && m.Slot == s.DeviceNumber && m.Offset == offset
	})
}

func (r *linuxRuntime) addCombined(_ context.Context, s hcsschema.LCOWCombinedLayers) error {
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
		if err := r.checkPath(p); err != nil {
			return err
		}
	}
	if same, err := r.have(s.ContainerRootPath, s); same || err != nil {
		return err
	}
	if err := r.combinable(s.ScratchPath, m.layers); err != nil {
		return err
	}
	r.load("overlay")
	empty, err := r.emptyDir()
	if err != nil {
		return err
	}
	if err := overlay(s.ContainerRootPath, layers, s.ScratchPath, empty); err != nil {
		return err
	}
	r.note(s.ContainerRootPath, m)
	return nil
}

// combinable fails when the scratch is in use already, or one of the parts, of which the scratch is one,
// is not on something the host has mounted: what containers write would be in memory, and lost.
func (r *linuxRuntime) combinable(scratch string, parts []string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p, o := range r.mounts {
		if scratch != "" && o.what.ScratchPath == scratch {
			return fmt.Errorf("scratch %s is %w: %s", scratch, errBusy, p)
		}
	}
	for _, part := range parts {
		at := part
		for ; at != "/"; at = filepath.Dir(at) {
			if m, ok := r.mounts[at]; ok && !m.what.BlockDev {
				break
			}
		}
		if at == "/" {
			return fmt.Errorf("%s is on no disk or share that is mounted here; mount it first: %w", part, errInvalid)
		}
	}
	return nil
}

// removeCombined also takes away what there is only for the sake of the root: its containers, and the
// directory that was made around it where the scratch is not mounted there.
func (r *linuxRuntime) removeCombined(_ context.Context, s hcsschema.LCOWCombinedLayers) error {
	root := s.ContainerRootPath
	if err := r.removeMount(root, func(m gcs.Mount) bool { return m.Kind == "overlay" }); err != nil {
		return err
	}
	if _, mounted := mountedDevice(root); mounted {
		return nil // something else
	}
	for _, c := range r.containersAt(root) {
		if !c.settle() {
			r.mu.Lock()
			delete(r.containers, c.id)
			r.mu.Unlock()
			c.end()
		}
	}
	if filepath.Base(root) == "rootfs" {
		_ = atParent(filepath.Dir(root), removeEmpty) // a mount point stays
	}
	return nil
}

// sizeOf is the size of a block device or file in bytes.
func sizeOf(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, 2)
}
