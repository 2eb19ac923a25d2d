package layers

import (
	"context"
	"fmt"

	"github.com/Microsoft/go-winio/pkg/guid"

	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// A composite image (CIM) holds all read-only layers of a Windows container in one volume. On the
// host it is mounted by cimfs.dll; into a VM block images travel as SCSI disks and the guest mounts
// them. Either way the union filter shows it together with the scratch.

const (
	unionFS = "UnionFS"
	// cimFiles is the folder of a CIM volume that holds the container's files.
	cimFiles = "Files"
	// cimMountBlock is the mount flag of block images.
	cimMountBlock = 0x10
)

// mountCIM mounts the image, activates the scratch and unites the two.
func (a *argon) mountCIM(ctx context.Context, r *Request) (string, error) {
	volume, err := wclayer.CIMVolume(r.ID)
	if err != nil {
		return "", err
	}
	mounted, err := r.Host.MountCIM(ctx, volume, *r.CIM)
	if err != nil {
		return "", err
	}
	a.did(func(ctx context.Context) error { return r.Host.DismountCIM(ctx, volume) })
	if err := r.Host.Activate(ctx, a.scratch); err != nil {
		return "", err
	}
	a.did(func(ctx context.Context) error { return r.Host.Deactivate(ctx, a.scratch) })
	root, err := r.Host.MountPath(ctx, a.scratch)
	if err != nil {
		return "", err
	}
	layer := wclayer.OverlayLayer{ID: volume, Path: mounted + cimFiles}
	if err := r.Host.AttachOverlay(ctx, root, []wclayer.OverlayLayer{layer}); err != nil {
		return "", err
	}
	a.did(func(ctx context.Context) error { return r.Host.DetachOverlay(ctx, root) })
	return root, nil
}

// checkCIM refuses an image that cannot be mounted as it is asked for. A VM's guest is told the names
// and disks of block images and nothing else, so what it could not be told is refused, too.
func (r *Request) checkCIM() error {
	if err := r.CIM.Check(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	switch {
	case r.VM == nil:
		return nil
	case r.VM.OS() != vmm.Windows:
		return fmt.Errorf("%w: a CIM for VM %s, which runs %s", ErrInvalid, r.VM.ID(), r.VM.OS())
	case r.CIM.Kind == wclayer.Forked:
		return fmt.Errorf("a CIM made of files in a VM: %w: use a block CIM", uvm.ErrNotSupported)
	case r.CIM.Digest != nil:
		return fmt.Errorf("a CIM with a root digest in a VM, whose guest does not check it: %w: mount it on the host", uvm.ErrNotSupported)
	case r.CIM.DAX:
		return fmt.Errorf("a CIM with DAX in a VM, where it is on a disk: %w: leave DAX out", uvm.ErrNotSupported)
	}
	return nil
}

// attachCIM brings block images into a Windows VM, mounts them there and gives the one layer that
// they make up.
func attachCIM(ctx context.Context, r *Request, c *uvm.Claim) ([]vmm.GuestLayer, error) {
	volume, err := guid.NewV4()
	if err != nil {
		return nil, fmt.Errorf("choose a volume GUID: %w", err)
	}
	kind := vmm.VirtualDisk
	if r.CIM.Kind == wclayer.BlockDevice {
		kind = vmm.PassThru
	}
	g := vmm.BlockCIMs{VolumeGUID: volume.String(), MountFlags: cimMountBlock, ContainerID: r.ID}
	for _, image := range append([]wclayer.CIM{r.CIM.Image}, r.CIM.Sources...) {
		le, err := r.VM.SCSI().Attach(ctx, c, roleCIMDisk, uvm.Disk{
			Path: image.Dir, ReadOnly: true, Kind: kind, Access: vmm.AccessIndividual})
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", image.Dir, err)
		}
		g.CIMs = append(g.CIMs, vmm.BlockCIM{Name: image.Name, LUN: le.LUN()})
	}
	if _, err := r.VM.MountBlockCIMs(ctx, c, g); err != nil {
		return nil, err
	}
	return []vmm.GuestLayer{{ID: g.VolumeGUID, Path: wclayer.VolumePath(volume) + cimFiles}}, nil
}
