package layers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/Microsoft/go-winio/pkg/guid"

	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/argon"
)

// buildHost prepares a process-isolated container on the Windows host itself (package vmm/argon): the scratch becomes
// a volume, in which a filter shows the layers.
func buildHost(r *Request) (func(context.Context, *Mounted) error, error) {
	if len(r.Layers) == 0 && r.CIM == nil {
		return nil, fmt.Errorf("%w: give at least one layer and the scratch", ErrInvalid)
	}
	look := r.folders
	if r.unseen {
		look = r.checkOrder
	} else if err := r.scratchOnHost(); err != nil {
		return nil, err
	} else if err := r.findCIM(); err != nil {
		return nil, err
	}
	if err := look(); err != nil {
		return nil, err
	}
	return func(ctx context.Context, m *Mounted) error {
		guest, filter := make([]vmm.GuestLayer, len(r.Layers)), ""
		for i, l := range r.Layers {
			guest[i].Path = l.Folder
		}
		if r.CIM != nil {
			layer, err := mountCIM(ctx, r, m.claim)
			if err != nil {
				return err
			}
			guest, filter = []vmm.GuestLayer{layer}, unionFS
		}
		if _, err := r.VM.AttachWritableLayer(ctx, m.claim, roleScratch, r.Scratch); err != nil {
			return fmt.Errorf("scratch: %w", err)
		}
		root, err := r.VM.CombineLayersWCOW(ctx, m.claim, r.Scratch, guest, filter)
		if err != nil {
			return err
		}
		m.Root = root.GuestPath()
		if v, ok := r.VM.Machine().(vmm.VolumePather); ok { // the machine of a dry run has no volumes
			if m.Root, err = v.VolumePath(ctx, r.Scratch); err != nil {
				return err
			}
		}
		m.ScratchPath = m.Root
		return nil
	}, nil
}

// scratchOnHost refuses a scratch that is not a folder with a disk.
func (r *Request) scratchOnHost() error {
	info, err := r.names.Stat(hostpath.Join(r.Scratch, sandboxVHDX))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("scratch %s: it holds no %s: create it first: %w", r.Scratch, sandboxVHDX, err)
	case err != nil:
		return fmt.Errorf("scratch %s: %w", r.Scratch, err)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%w: scratch %s: its %s is no disk image", ErrInvalid, r.Scratch, sandboxVHDX)
	}
	return nil
}

// findCIM refuses composite images whose files do not exist. Devices are left to the platform.
func (r *Request) findCIM() error {
	if r.CIM == nil || r.CIM.Kind == wclayer.BlockDevice {
		return nil
	}
	for _, image := range append([]CIMImage{r.CIM.Image}, r.CIM.Sources...) {
		path := image.Dir
		if r.CIM.Kind == wclayer.Forked {
			path = hostpath.Join(image.Dir, image.Name)
		}
		info, err := r.names.Stat(path)
		if err != nil {
			return fmt.Errorf("composite image %s: %w", path, err)
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%w: composite image %s is no file", ErrInvalid, path)
		}
	}
	return nil
}

var cimKinds = map[wclayer.BlockType]vmm.CIMKind{
	wclayer.Forked: vmm.CIMFolder, wclayer.BlockDevice: vmm.CIMBlockDevice, wclayer.BlockFile: vmm.CIMBlockFile,
}

// mountCIM mounts the images and returns the single layer that they form.
func mountCIM(ctx context.Context, r *Request, c *uvm.Claim) (vmm.GuestLayer, error) {
	volume, err := guid.NewV4()
	if err != nil {
		return vmm.GuestLayer{}, fmt.Errorf("choose a volume GUID: %w", err)
	}
	g := vmm.CIMVolume{VolumeGUID: volume.String(), Kind: cimKinds[r.CIM.Kind], Digest: r.CIM.Digest, DAX: r.CIM.DAX}
	for _, image := range append([]wclayer.CIM{r.CIM.Image}, r.CIM.Sources...) {
		g.Images = append(g.Images, vmm.CIMImage(image))
	}
	if _, err := r.VM.MountCIM(ctx, c, roleCIMDisk, g); err != nil {
		return vmm.GuestLayer{}, err
	}
	return vmm.GuestLayer{ID: g.VolumeGUID, Path: wclayer.VolumePath(volume) + cimFiles}, nil
}

// The rest is for hcsshim's functions with a nil VM: the layers are mounted on this Windows host, and nothing is
// recorded.

// mountHere mounts a root on the host, until it is unmounted or the host is rebooted.
func (mt Mounter) mountHere(ctx context.Context, r Request) (string, error) {
	vm, err := uvm.Open(ctx, "", func(context.Context) (vmm.Machine, error) {
		return argon.Open(argon.Options{ID: "host", Host: mt.host()})
	}, uvm.Options{})
	if err != nil {
		return "", err
	}
	r.VM, r.unseen = vm, true
	m, err := Mount(ctx, r)
	if err == nil {
		return m.Root, vm.Close()
	}
	left := vm.Claims()
	// Do not retry what the platform refused to undo: it would be refused again.
	if len(left) == 0 || !outlasted(err) {
		return "", errors.Join(err, vm.Close())
	}
	// A call of the platform outlasted the rollback timeout. Release the rest when it ends.
	go func() {
		for _, c := range left {
			_ = c.Release(context.WithoutCancel(ctx), nil) // there is no caller left to report an error to
		}
		_ = vm.Close()
	}()
	return "", fmt.Errorf("%w: %w; rolling back in the background", err, wclayer.ErrUnfinished)
}

// outlasted reports whether err says that a call may still be in progress.
func outlasted(err error) bool {
	return errors.Is(err, wclayer.ErrUnfinished) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, context.Canceled)
}

// unmountHere needs only the scratch: it identifies the layer filter and the disk.
func (mt Mounter) unmountHere(ctx context.Context, scratch string, op UnmountOperation) error {
	if op != UnmountOperationAll {
		return fmt.Errorf("%w: without a VM only everything can be unmounted (operation %#x)",
			ErrInvalid, uint(UnmountOperationAll))
	}
	m, err := argon.Open(argon.Options{ID: "host", Host: mt.host()})
	if err != nil {
		return err
	}
	err = errors.Join(
		m.Apply(ctx, vmm.Change{Op: vmm.Remove, Mount: vmm.CombinedLayers{RootPath: scratch}}),
		m.Apply(ctx, vmm.Change{Op: vmm.Remove, Device: vmm.WritableLayer{Path: scratch}}),
		m.Close())
	if err != nil {
		return fmt.Errorf("unmount %s: %w", scratch, err)
	}
	return nil
}
