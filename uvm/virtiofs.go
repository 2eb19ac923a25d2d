package uvm

import (
	"cmp"
	"context"
	"fmt"

	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/vmm"
)

// volumesRoot is the guest folder with the shares of the host, each in a folder named after its slot.
const volumesRoot = "/run/strata/volumes/"

// VirtioFS manages folders and files that are shared with a Linux guest by virtiofs; changes on either side are
// visible on the other at once.
type VirtioFS struct{ vm *UtilityVM }

// VirtioFS returns the manager of the VM's virtiofs shares.
func (vm *UtilityVM) VirtioFS() VirtioFS { return VirtioFS{vm} }

// Share shares a folder or, if file is set, a single file, and mounts it; an existing share with the same options is
// reused. A file is named vmm.VirtioFSFile in the folder Lease.GuestPath. Errors match ErrNotSupported if the VM has
// no virtiofs, and ErrNoAvailableLocation if it has no free slot. If the server of an existing share has died, Share
// fails, as accesses in the guest would block forever.
func (v VirtioFS) Share(ctx context.Context, c *Claim, role, path string, file, readOnly bool) (*Lease, error) {
	key := fmt.Sprintf("virtiofs|%s|file=%t|ro=%t", hostpath.Identity(path), file, readOnly)
	return v.share(ctx, c, role, key, vmm.VirtioFSShare{Path: path, File: file, ReadOnly: readOnly}, "")
}

// ShareAt shares a folder read-write for this claim only and mounts it at guestPath, such as a container's root. If it
// is already shared this way, the error matches ErrAlreadyAttached. Other errors are those of Share.
func (v VirtioFS) ShareAt(ctx context.Context, c *Claim, role, path, guestPath string) (*Lease, error) {
	key := fmt.Sprintf("virtiofs|%s|alone", hostpath.Identity(path))
	return v.share(ctx, c, role, key, vmm.VirtioFSShare{Path: path}, guestPath)
}

// share shares d in a free slot and mounts it at at, exclusively, or with an empty at in the folder named after the
// slot, shared.
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
				return nil, fmt.Errorf("share %s: %w: all %d virtiofs slots of the VM are taken",
					d.Path, ErrNoAvailableLocation, slots)
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

// check returns an error if the server of the lease's share no longer runs.
func (v VirtioFS) check(ctx context.Context, le *Lease) error {
	s, ok := v.vm.machine.(vmm.ShareServer)
	if slot, shared := le.ShareSlot(); ok && shared {
		return s.CheckShare(ctx, slot)
	}
	return nil
}

// ShareSlot returns the slot of the lease's VirtioFSShare; ok is false if the lease is of another kind.
func (le *Lease) ShareSlot() (slot uint32, ok bool) {
	n, _ := fmt.Sscanf(le.slot, "virtiofs %d", &slot)
	return slot, n == 1
}
