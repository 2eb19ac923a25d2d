package uvm

import (
	"context"
	"fmt"

	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/vmm"
)

// AttachWritableLayer attaches a container's scratch folder on the Windows host itself, exclusively: if it is in use,
// the error matches ErrAlreadyAttached. The lease's GuestPath is the folder, to be passed to CombineLayersWCOW as the
// root. On other machines the error matches ErrNotSupported.
func (vm *UtilityVM) AttachWritableLayer(ctx context.Context, c *Claim, role, folder string) (*Lease, error) {
	if !vm.Limits().WritableLayers {
		return nil, fmt.Errorf("attach the writable layer %s: %w", folder, ErrNotSupported)
	}
	return vm.l.acquire(ctx, c, role, want{
		deviceKey: "layer|" + hostpath.Identity(folder), exclusive: true,
		device: func() (vmm.Device, error) { return vmm.WritableLayer{Path: folder}, nil },
		path:   func(vmm.Device) string { return folder },
	})
}

// MountCIM mounts composite images on the Windows host itself, as a volume with the GUID that the caller chose.
func (vm *UtilityVM) MountCIM(ctx context.Context, c *Claim, role string, g vmm.CIMVolume) (*Lease, error) {
	if !vm.Limits().WritableLayers {
		return nil, fmt.Errorf("mount images as volume %s: %w", g.VolumeGUID, ErrNotSupported)
	}
	return vm.l.acquire(ctx, c, role, want{
		mountKey: "cims|" + g.VolumeGUID, exclusive: true,
		mount: func(vmm.Device) (vmm.Mount, error) { return g, nil },
	})
}
