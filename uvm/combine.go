package uvm

import (
	"context"
	"fmt"

	"github.com/stratavm/strata/vmm"
)

// CombineLayersLCOW creates a root in a Linux guest from mounted layers, top layer first, and a scratch directory. An
// empty scratch makes a read-only root. Releasing the lease removes the root.
func (vm *UtilityVM) CombineLayersLCOW(ctx context.Context, c *Claim, root string, layers []string,
	scratch string) (*Lease, error) {
	guest := make([]vmm.GuestLayer, len(layers))
	for i, p := range layers {
		guest[i].Path = p
	}
	return vm.combine(ctx, c, vmm.Linux, vmm.CombinedLayers{
		ContainerID: c.id, RootPath: root, Layers: guest, ScratchPath: scratch})
}

// CombineLayersWCOW attaches the layer filter to a mounted scratch volume in a Windows guest. layers are identities
// and paths, top layer first. filter is "UnionFS", or empty for WCIFS.
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

// MountBlockCIMs mounts composite images that are attached as disks in a Windows guest, as a volume with the GUID that
// the caller chose. The disks have leases of their own, to be released after this one.
func (vm *UtilityVM) MountBlockCIMs(ctx context.Context, c *Claim, g vmm.BlockCIMs) (*Lease, error) {
	if vm.OS() != vmm.Windows {
		return nil, fmt.Errorf("mount block CIMs: this VM runs %s: %w", vm.OS(), ErrNotSupported)
	}
	return vm.l.acquire(ctx, c, "cims", want{
		mountKey: "cims|" + g.VolumeGUID, exclusive: true,
		mount: func(vmm.Device) (vmm.Mount, error) { return g, nil },
	})
}
