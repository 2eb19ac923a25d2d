package uvm

import (
	"context"
	"fmt"

	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/vmm"
)

// AttachWritableLayer attaches the scratch folder of a container on a Windows host itself, for one container
// only: ErrAlreadyAttached says that another one has it. The lease's path is the folder; CombineLayersWCOW
// with the folder for its root shows layers in its volume. Other machines know no such layers: ErrNotSupported.
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

// MountCIM mounts composite images on a Windows host itself, under a volume GUID of the caller's choice.
func (vm *UtilityVM) MountCIM(ctx context.Context, c *Claim, role string, g vmm.CIMVolume) (*Lease, error) {
	if !vm.Limits().WritableLayers {
		return nil, fmt.Errorf("mount images as volume %s: %w", g.VolumeGUID, ErrNotSupported)
	}
	return vm.l.acquire(ctx, c, role, want{
		mountKey: "cims|" + g.VolumeGUID, exclusive: true,
		mount: func(vmm.Device) (vmm.Mount, error) { return g, nil },
	})
}
