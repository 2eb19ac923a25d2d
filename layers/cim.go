package layers

import (
	"context"
	"fmt"

	"github.com/Microsoft/go-winio/pkg/guid"

	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/argon"
)

// A composite image (CIM) holds all read-only layers of a Windows container in one volume. On the host, cimfs.dll
// mounts it; for a VM, block CIMs are attached as SCSI disks and the guest mounts them. In both cases the union filter
// combines it with the scratch.

const (
	unionFS = argon.UnionFS
	// cimFiles is the folder of a CIM volume that holds the container's files.
	cimFiles = "Files"
	// cimMountBlock is the mount flag of block images.
	cimMountBlock = 0x10
)

// CIMMount names the composite images that make up the read-only layers of a Windows container.
type CIMMount = wclayer.CIMMount

// CIMImage is one composite image.
type CIMImage = wclayer.CIM

// ParseCIM parses paths of composite images on a Windows host, such as C:\images\web.cim: the image to mount, followed
// by the images that it was merged from, if any, top layer first. kind is "folder" if images are files in a folder, or
// "file" or "device" if the directory part of a path is a block file or device.
func ParseCIM(kind string, paths []string) (*CIMMount, error) {
	blockType, known := map[string]wclayer.BlockType{
		"folder": wclayer.Forked, "file": wclayer.BlockFile, "device": wclayer.BlockDevice}[kind]
	if !known || len(paths) == 0 {
		return nil, fmt.Errorf("%w: %d images of the kind %q: give at least one, of the kind folder, file or device",
			ErrInvalid, len(paths), kind)
	}
	all, err := cimsAt(paths)
	if err != nil {
		return nil, err
	}
	m := &CIMMount{Kind: blockType, Image: all[0], Sources: all[1:]}
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return m, nil
}

// checkCIM refuses an image that cannot be mounted as requested. A VM's guest gets only the names and disks of block
// CIMs, so options that it cannot be told are refused, too.
func (r *Request) checkCIM() error {
	if err := r.CIM.Check(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	switch {
	case r.VM == nil || r.VM.Limits().WritableLayers:
		return nil
	case r.VM.OS() != vmm.Windows:
		return fmt.Errorf("%w: a CIM for VM %s, which runs %s", ErrInvalid, r.VM.ID(), r.VM.OS())
	case r.CIM.Kind == wclayer.Forked:
		return fmt.Errorf("a CIM made of files in a VM: %w: use a block CIM", uvm.ErrNotSupported)
	case r.CIM.Digest != nil:
		return fmt.Errorf("a CIM with a root digest in a VM, whose guest does not check it: %w: "+
			"mount it on the host", uvm.ErrNotSupported)
	case r.CIM.DAX:
		return fmt.Errorf("a CIM with DAX in a VM, where it is on a disk: %w: leave DAX out", uvm.ErrNotSupported)
	}
	return nil
}

// attachCIM attaches block CIMs to a Windows VM, mounts them there and returns the single layer that they form.
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
