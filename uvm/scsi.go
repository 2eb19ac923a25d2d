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
	Version        string       // tells one content of Path from another; see PMEM
	Kind           vmm.DiskKind // empty: a disk image file
	Format         vmm.DiskFormat
	ExtensibleType string
	Access         vmm.Access
	Extents        []vmm.Extent // a composite disk; see vmm.SCSIDisk
	Alone          bool         // a second user is ErrAlreadyAttached
	Mount          *DiskMount   // nil: attach only
}

// DiskMount says how the guest mounts a disk.
type DiskMount struct {
	// Identity, when set, says what is mounted, whatever disk it travels on: a layer that is mounted
	// already from another disk is shared, and the disk asked for is not attached for it.
	Identity         string
	GuestPath        string // empty: one is chosen
	Partition        uint64 // 1-based; 0 is the whole disk
	Options          []string
	Filesystem       string
	EnsureFilesystem bool // format unless it is Filesystem already
	Encrypted        bool
	BlockDev         bool
	Verity           *vmm.Verity
}

// SCSI is the SCSI side of a VM.
type SCSI struct{ vm *UtilityVM }

// SCSI returns the SCSI side of the VM.
func (vm *UtilityVM) SCSI() SCSI { return SCSI{vm} }

// Attach attaches a disk and mounts it, or shares it when the same disk (resolved path, read-only,
// kind) is mounted the same way already; then Lease.GuestPath is where it was mounted first. The
// lowest free slot is taken, controller by controller. Errors match ErrNoSCSIControllers,
// ErrNoAvailableLocation, and ErrNotSupported for composite disks and dm-verity where the VM lacks them.
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
		d.Kind = "" // the default, so that both spellings are one disk
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

// Share takes a lease on the mount of the given identity when it is there, whatever disk it is on.
// Otherwise the error matches ErrNotAttached; no call to the machine is made for that.
func (s SCSI) Share(ctx context.Context, c *Claim, role, identity string) (*Lease, error) {
	return s.vm.l.acquire(ctx, c, role, want{
		mountKey: layerKey(identity),
		mount:    func(vmm.Device) (vmm.Mount, error) { return nil, fmt.Errorf("layer %s: %w", identity, ErrNotAttached) },
	})
}

func layerKey(identity string) string { return "layer|" + hostpath.Identity(identity) }

// key is the identity of a disk. The access right is not part of it: it is about how to get at the
// disk, not about which one it is.
func (d Disk) key() string {
	var ext strings.Builder
	for _, e := range d.Extents {
		fmt.Fprintf(&ext, "|%s@%d+%d", hostpath.Identity(e.Path), e.Offset, e.Length)
	}
	if m := d.Mount; m != nil && m.Verity != nil && m.Partition == 0 {
		fmt.Fprintf(&ext, "|verity=%s", m.Verity.RootDigest) // a guest does not mount one disk both ways
	}
	return fmt.Sprintf("scsi|%s|%s|ro=%t|%s|%s%s", hostpath.Identity(d.Path), d.Version, d.ReadOnly, d.Kind,
		d.ExtensibleType, &ext)
}

// key is the identity of a mount on its disk. The guest path is not part of it, nor is how a blank
// disk is to be formatted: the second user gets what the first one made.
func (m DiskMount) key() string {
	options := slices.Sorted(slices.Values(m.Options))
	digest := ""
	if m.Verity != nil {
		digest = m.Verity.RootDigest
	}
	return fmt.Sprintf("|mount|p%d|%s|enc=%t|dev=%t|%s",
		m.Partition, strings.ToLower(strings.Join(options, ",")), m.Encrypted, m.BlockDev, digest)
}
