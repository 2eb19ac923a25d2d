package uvm

import (
	"context"
	"fmt"

	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/vmm"
)

// PMEM is a read-only file to attach as a persistent-memory device.
type PMEM struct {
	Path  string // absolute host path, links resolved
	Bytes int64  // size of the file, footer included
	// Version changes when the content of Path does, so that a device attached before the file was replaced is not
	// reused.
	Version string
	Format  vmm.DiskFormat
	Verity  *vmm.Verity
}

// content returns the size of the device: a VHD's footer is not part of it.
func (p PMEM) content() uint64 {
	const footer = 512
	vhd := p.Format == vmm.FormatVHD || p.Format == vmm.FormatByName && hostpath.Ext(p.Path) == ".vhd"
	if vhd && p.Bytes > footer {
		return uint64(p.Bytes) - footer
	}
	return uint64(p.Bytes)
}

// VPMEM manages the persistent-memory devices of a VM.
type VPMEM struct{ vm *UtilityVM }

// VPMEM returns the manager of the VM's persistent-memory devices.
func (vm *UtilityVM) VPMEM() VPMEM { return VPMEM{vm} }

// Attach attaches a file to the lowest free slot n and mounts it at /run/layers/p<n>, or shares the existing mount.
// Errors match ErrNoVPMEM, ErrMaxVPMEMLayerSize, ErrVPMEMAlign or ErrNoAvailableLocation if SCSI may work instead, and
// ErrNotSupported if the guest does not support dm-verity.
func (v VPMEM) Attach(ctx context.Context, c *Claim, role string, p PMEM) (*Lease, error) {
	l, lim := v.vm.l, v.vm.Limits()
	switch {
	case lim.VPMEMDevices == 0 || lim.PhysicallyBacked:
		return nil, fmt.Errorf("attach %s: %w", p.Path, ErrNoVPMEM)
	case uint64(p.Bytes) > lim.VPMEMMaxBytes:
		return nil, fmt.Errorf("attach %s (%d bytes): %w of %d bytes", p.Path, p.Bytes,
			ErrMaxVPMEMLayerSize, lim.VPMEMMaxBytes)
	case lim.VPMEMAlign != 0 && p.content()%lim.VPMEMAlign != 0:
		return nil, fmt.Errorf("attach %s: its %d bytes are no multiple of %d: %w", p.Path, p.content(),
			lim.VPMEMAlign, ErrVPMEMAlign)
	case p.Verity != nil && !lim.Verity:
		return nil, fmt.Errorf("attach %s: dm-verity: %w", p.Path, ErrNotSupported)
	}
	key := "vpmem|" + hostpath.Identity(p.Path) + "|" + p.Version
	if p.Verity != nil {
		key += "|verity=" + p.Verity.RootDigest // do not share a mount without verification, or with another hash tree
	}
	return l.acquire(ctx, c, role, want{
		deviceKey: key, retained: lim.VPMEMRetained,
		device: func() (vmm.Device, error) {
			slot := l.slots.vpmem.firstFree()
			if slot < 0 {
				return nil, fmt.Errorf("attach %s as VPMEM: %w: all %d devices are taken",
					p.Path, ErrNoAvailableLocation, lim.VPMEMDevices)
			}
			return vmm.VPMEMDevice{Slot: uint32(slot), Path: p.Path, Format: p.Format}, nil
		},
		mountKey: key + "|mount",
		mount: func(dev vmm.Device) (vmm.Mount, error) {
			slot := dev.(vmm.VPMEMDevice).Slot
			return vmm.MappedPMEM{Slot: slot, MountPath: fmt.Sprintf("/run/layers/p%d", slot), Verity: p.Verity}, nil
		},
	})
}
