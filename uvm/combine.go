package uvm

import (
	"context"
	"fmt"

	"github.com/stratavm/strata/vmm"
)

// CombineLayersLCOW creates one root of mounted layers, top-most first, and a scratch directory in a
// Linux guest. An empty scratch makes a read-only root. Releasing the lease takes the root away.
func (vm *UtilityVM) CombineLayersLCOW(ctx context.Context, c *Claim, root string, layers []string,
	scratch string) (*Lease, error) {
	guest := make([]vmm.GuestLayer, len(layers))
	for i, p := range layers {
		guest[i].Path = p
	}
	return vm.combine(ctx, c, vmm.Linux, vmm.CombinedLayers{
		ContainerID: c.id, RootPath: root, Layers: guest, ScratchPath: scratch})
}

// CombineLayersWCOW attaches the layer filter to a mounted scratch volume in a Windows guest, with
// the layers' identities and paths top-most first. filter is empty for WCIFS or "UnionFS".
func (vm *UtilityVM) CombineLayersWCOW(ctx context.Context, c *Claim, root string, layers []vmm.GuestLayer,
	filter string) (*Lease, error) {
	return vm.combine(ctx, c, vmm.Windows, vmm.CombinedLayers{RootPath: root, Layers: layers, Filter: filter})
}

func (vm *UtilityVM) combine(ctx context.Context, c *Claim, os vmm.OS, g vmm.CombinedLayers) (*Lease, error) {
	if vm.OS() != os {
		return nil, fmt.Errorf("combine layers at %s for a %s guest: this VM runs %s: %w",
			g.RootPath, os, vm.OS(), ErrNotSupported)
	}
	return vm.l.acquire(ctx, c, "root", want{
		mountKey: "combined|" + g.RootPath, exclusive: true,
		mount: func(vmm.Device) (vmm.Mount, error) { return g, nil },
	})
}

// MountBlockCIMs mounts composite images that are attached as disks in a Windows guest, under a
// volume GUID of the caller's choice. The disks are leases of their own and are to be released after.
func (vm *UtilityVM) MountBlockCIMs(ctx context.Context, c *Claim, g vmm.BlockCIMs) (*Lease, error) {
	if vm.OS() != vmm.Windows {
		return nil, fmt.Errorf("mount block CIMs: this VM runs %s: %w", vm.OS(), ErrNotSupported)
	}
	return vm.l.acquire(ctx, c, "cims", want{
		mountKey: "cims|" + g.VolumeGUID, exclusive: true,
		mount: func(vmm.Device) (vmm.Mount, error) { return g, nil },
	})
}
