package layers

import (
	"context"
	"fmt"

	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// checkDisks validates RootDisk and WholeScratch, before anything is changed.
func (r *Request) checkDisks() error {
	switch {
	case r.RootDisk == "" && !r.WholeScratch:
		return nil
	case r.windows():
		return fmt.Errorf("%w: a disk as the root, or a whole disk as the scratch, is for Linux containers",
			ErrInvalid)
	case r.WholeScratch && r.Scratch == "":
		return fmt.Errorf("%w: WholeScratch without a Scratch", ErrInvalid)
	case r.RootDisk != "" && (len(r.Layers) > 0 || r.Scratch != "" || r.RootFolder != ""):
		return fmt.Errorf("%w: give either RootDisk, or RootFolder or layers and a scratch", ErrInvalid)
	case r.RootDisk == "":
		return nil
	}
	return localPath(ErrInvalid, "root", r.RootDisk)
}

// wholeDisk returns a raw disk with an existing file system for one container. It is never formatted.
func wholeDisk(path, guestPath string) uvm.Disk {
	return uvm.Disk{Path: path, Format: vmm.FormatRaw, Access: vmm.AccessIndividual, Alone: true,
		Mount: &uvm.DiskMount{GuestPath: guestPath, Filesystem: "ext4"}}
}

// buildDisk prepares a Linux container whose root is a disk.
func (r *Request) buildDisk() (func(context.Context, *Mounted) error, error) {
	disk, err := r.writableDisk("root", r.RootDisk)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, m *Mounted) error {
		if err := attachVolumes(ctx, r, m); err != nil {
			return err
		}
		le, err := r.VM.SCSI().Attach(ctx, m.claim, roleRoot, wholeDisk(disk, r.GuestRoot+"/rootfs"))
		if err != nil {
			return fmt.Errorf("root: %w", err)
		}
		m.Root = le.GuestPath()
		return attachNetwork(ctx, r, m)
	}, nil
}
