package uvm

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/vmm"
)

// Disk is a disk to attach over SCSI.
type Disk struct {
	Path           string // absolute host path, links resolved; for a composite disk its name
	ReadOnly       bool
	Version        string       // changes when the content of Path does; see PMEM.Version
	Kind           vmm.DiskKind // empty: a disk image file
	Format         vmm.DiskFormat
	ExtensibleType string
	Access         vmm.Access
	Extents        []vmm.Extent // a composite disk; see vmm.SCSIDisk
	Alone          bool         // do not share: a second user gets ErrAlreadyAttached
	Mount          *DiskMount   // nil: attach only
}

// DiskMount describes how the guest mounts a disk.
type DiskMount struct {
	// Identity, if set, identifies the content independently of the disk that it is on: if it is already mounted from
	// another disk, that mount is shared and the disk is not attached.
	Identity         string
	GuestPath        string // empty: one is chosen
	Partition        uint64 // 1-based; 0 is the whole disk
	Options          []string
	Filesystem       string
	EnsureFilesystem bool // format the disk unless it has Filesystem
	Encrypted        bool
	BlockDev         bool
	Verity           *vmm.Verity
}

// SCSI manages the SCSI disks of a VM.
type SCSI struct{ vm *UtilityVM }

// SCSI returns the manager of the VM's SCSI disks.
func (vm *UtilityVM) SCSI() SCSI { return SCSI{vm} }

// Attach attaches a disk in the lowest free slot and mounts it. If the same disk (resolved path, read-only, kind) is
// already mounted the same way, it is shared; Lease.GuestPath is then the existing mount point. Errors match
// ErrNoSCSIControllers, ErrNoAvailableLocation, and ErrNotSupported if the VM does not support composite disks or
// dm-verity.
func (s SCSI) Attach(ctx context.Context, c *Claim, role string, d Disk) (*Lease, error) {
	l := s.vm.l
	if s.vm.Limits().SCSIControllers == 0 {
		return nil, fmt.Errorf("attach %s: %w", d.Path, ErrNoSCSIControllers)
	}
	if d.Extents != nil && !s.vm.Limits().CompositeDisks {
		return nil, fmt.Errorf("attach %s: composite disks: %w", d.Path, ErrNotSupported)
	}
	if d.Mount != nil && d.Mount.Verity != nil && !s.vm.Limits().Verity {
		return nil, fmt.Errorf("attach %s: dm-verity: %w", d.Path, ErrNotSupported)
	}
	if d.Kind == vmm.VirtualDisk {
		d.Kind = "" // the default: both spellings mean the same disk
	}
	w := want{deviceKey: d.key(), exclusive: d.Alone, device: func() (vmm.Device, error) {
		ctrl, lun, ok := l.slots.freeSCSI()
		if !ok {
			return nil, fmt.Errorf("attach %s over SCSI: %w: all %d LUNs of %d controllers are taken",
				d.Path, ErrNoAvailableLocation, s.vm.Limits().SCSILUNs, s.vm.Limits().SCSIControllers)
		}
		return vmm.SCSIDisk{Controller: ctrl, LUN: lun, Path: d.Path, ReadOnly: d.ReadOnly, Kind: d.Kind,
			Format: d.Format, ExtensibleType: d.ExtensibleType, Access: d.Access, Extents: d.Extents}, nil
	}}
	if d.Mount != nil {
		m := *d.Mount
		if m.GuestPath == "" {
			m.GuestPath = s.vm.nextMountPath()
		}
		w.mountKey = w.deviceKey + m.key()
		if m.Identity != "" {
			w.mountKey = layerKey(m.Identity)
		}
		w.mount = func(dev vmm.Device) (vmm.Mount, error) {
			disk := dev.(vmm.SCSIDisk)
			return vmm.MappedDisk{MountPath: m.GuestPath, Controller: disk.Controller, LUN: disk.LUN,
				Partition: m.Partition, ReadOnly: d.ReadOnly, Options: m.Options, Filesystem: m.Filesystem,
				EnsureFilesystem: m.EnsureFilesystem, Encrypted: m.Encrypted, BlockDev: m.BlockDev,
				Verity: m.Verity}, nil
		}
	}
	return l.acquire(ctx, c, role, w)
}

// Share acquires a lease on the existing mount with the given identity. If there is none, the error matches
// ErrNotAttached and the machine is not called.
func (s SCSI) Share(ctx context.Context, c *Claim, role, identity string) (*Lease, error) {
	return s.vm.l.acquire(ctx, c, role, want{
		mountKey: layerKey(identity),
		mount:    func(vmm.Device) (vmm.Mount, error) { return nil, fmt.Errorf("layer %s: %w", identity, ErrNotAttached) },
	})
}

func layerKey(identity string) string { return "layer|" + hostpath.Identity(identity) }

// key returns the identity of a disk. Access is not part of it: it says how to open the disk, not which disk it is.
func (d Disk) key() string {
	var ext strings.Builder
	for _, e := range d.Extents {
		fmt.Fprintf(&ext, "|%s@%d+%d", hostpath.Identity(e.Path), e.Offset, e.Length)
	}
	if m := d.Mount; m != nil && m.Verity != nil && m.Partition == 0 {
		fmt.Fprintf(&ext, "|verity=%s", m.Verity.RootDigest) // not one disk both with and without dm-verity
	}
	return fmt.Sprintf("scsi|%s|%s|ro=%t|%s|%s%s", hostpath.Identity(d.Path), d.Version, d.ReadOnly, d.Kind,
		d.ExtensibleType, &ext)
}

// key returns the identity of a mount on its disk. The guest path and how a blank disk is formatted are not part of
// it: later users share the mount of the first.
func (m DiskMount) key() string {
	options := slices.Sorted(slices.Values(m.Options))
	digest := ""
	if m.Verity != nil {
		digest = m.Verity.RootDigest
	}
	return fmt.Sprintf("|mount|p%d|%s|enc=%t|dev=%t|%s",
		m.Partition, strings.ToLower(strings.Join(options, ",")), m.Encrypted, m.BlockDev, digest)
}
