package uvm

import (
	"cmp"
	"context"
	"fmt"

	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/vmm"
)

// volumesRoot is where a guest has the shares of its host, each in a folder called after its slot.
const volumesRoot = "/run/strata/volumes/"

// VirtioFS is the side of a VM that shares folders and files with a Linux guest which sees every change at once.
type VirtioFS struct{ vm *UtilityVM }

// VirtioFS returns the virtiofs side of the VM.
func (vm *UtilityVM) VirtioFS() VirtioFS { return VirtioFS{vm} }

// Share shares a folder, or with file a single file, and mounts it; what is shared the same way already is used again.
// A file is called vmm.VirtioFSFile in the folder that the lease's GuestPath names. Errors match ErrNotSupported where
// the VM has no such shares, and ErrNoAvailableLocation where it has no slot left. A share whose server has died is an
// error, as the guest would wait for it for ever.
func (v VirtioFS) Share(ctx context.Context, c *Claim, role, path string, file, readOnly bool) (*Lease, error) {
	key := fmt.Sprintf("virtiofs|%s|file=%t|ro=%t", hostpath.Identity(path), file, readOnly)
	return v.share(ctx, c, role, key, vmm.VirtioFSShare{Path: path, File: file, ReadOnly: readOnly}, "")
}

// ShareAt shares a folder that is written to and mounts it at a place in the guest, such as that of a container's root.
// It is the claim's alone: one that is shared so already is ErrAlreadyAttached. Errors are otherwise those of Share.
func (v VirtioFS) ShareAt(ctx context.Context, c *Claim, role, path, guestPath string) (*Lease, error) {
	key := fmt.Sprintf("virtiofs|%s|alone", hostpath.Identity(path))
	return v.share(ctx, c, role, key, vmm.VirtioFSShare{Path: path}, guestPath)
}

// share shares what d says, in a slot that is free, and mounts it at a place that is the caller's alone, or in the
// folder called after the slot where others may have it too.
func (v VirtioFS) share(ctx context.Context, c *Claim, role, key string, d vmm.VirtioFSShare, at string,
) (*Lease, error) {
	l, slots := v.vm.l, v.vm.Limits().VirtioFSShares
	if slots == 0 {
		return nil, fmt.Errorf("share %s: folders of the host: %w", d.Path, ErrNotSupported)
	}
	le, err := l.acquire(ctx, c, role, want{
		deviceKey: key,
		exclusive: at != "",
		device: func() (vmm.Device, error) {
			slot := l.slots.shares.firstFree()
			if slot < 0 {
				return nil, fmt.Errorf("share %s: %w: the VM has %d folders and files of the host already, "+
					"as many as it can", d.Path, ErrNoAvailableLocation, slots)
			}
			d.Slot = uint32(slot)
			return d, nil
		},
		mountKey: key + "|mount",
		mount: func(device vmm.Device) (vmm.Mount, error) {
			slot := device.(vmm.VirtioFSShare).Slot
			return vmm.MappedVirtioFS{MountPath: cmp.Or(at, fmt.Sprint(volumesRoot, slot)), Slot: slot,
				ReadOnly: d.ReadOnly}, nil
		},
	})
	if err != nil {
		return nil, err
	}
	if err := v.check(ctx, le); err != nil {
		grace, cancel := l.grace(ctx)
		defer cancel()
		if derr := l.drop(grace, le); derr != nil {
			err = fmt.Errorf("%w; and could not be undone: %w", err, derr)
		}
		return nil, err
	}
	return le, nil
}

// check fails when what a lease is on is not served any more.
func (v VirtioFS) check(ctx context.Context, le *Lease) error {
	s, ok := v.vm.machine.(vmm.ShareServer)
	if slot, shared := le.ShareSlot(); ok && shared {
		return s.CheckShare(ctx, slot)
	}
	return nil
}

// ShareSlot is the slot of the VirtioFSShare that a lease is on.
func (le *Lease) ShareSlot() (slot uint32, ok bool) {
	n, _ := fmt.Sscanf(le.slot, "virtiofs %d", &slot)
	return slot, n == 1
}
