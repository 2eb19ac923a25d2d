package layers

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/attribute"

	"github.com/stratavm/strata/internal/span"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// Roles of the leases of a container.
const (
	roleLayer   = "layer"
	roleScratch = "scratch"
	roleRoot    = "root"
	roleNetwork = "network"
	roleVolume  = "volume"
	roleCIM     = "cims"
	roleCIMDisk = "cim"
)

// Mount creates a container's root. Layers and a scratch that are already in the VM are shared. On failure it rolls
// back everything; what cannot be rolled back is named in the error, stays in the VM's journal under the container's
// id, and is removed by the next Mount with that id or by Recover.
func Mount(ctx context.Context, r Request) (*Mounted, error) {
	ctx, s := span.Start(ctx, "strata.mount", attribute.String("strata.container", r.ID),
		attribute.Int("strata.layers", len(r.Layers)))
	m, err := mount(ctx, &r)
	span.End(s, err)
	if err != nil {
		return nil, fmt.Errorf("mount layers of container %q: %w", r.ID, err)
	}
	return m, nil
}

func mount(ctx context.Context, r *Request) (*Mounted, error) {
	if err := r.complete(); err != nil {
		return nil, err
	}
	if r.VM == nil {
		return nil, fmt.Errorf("%w: Request.VM is not set: give a VM, or the host itself as "+
			"strata.OpenHost returns it", ErrInvalid)
	}
	build, ok := builders[r.VM.OS()]
	if !ok {
		return nil, fmt.Errorf("guest system %q: %w", r.VM.OS(), uvm.ErrNotSupported)
	}
	prepared, err := build(ctx, r)
	if err != nil {
		return nil, err
	}
	meta := Meta{GuestRoot: r.GuestRoot, RootFolder: r.RootFolder, RootDisk: r.RootDisk, Scratch: r.Scratch,
		Volumes: r.Volumes, Image: r.Image}
	for _, l := range r.Layers {
		meta.Layers = append(meta.Layers, l.Folder+l.File)
	}
	claim, err := r.VM.Claim(ctx, r.ID, meta)
	if err != nil {
		return nil, err
	}
	m := &Mounted{ID: r.ID, Image: r.Image, vm: r.VM, claim: claim}
	ctx = uvm.WithRollbackBudget(ctx)
	err = prepared(ctx, m)
	if err == nil {
		meta.Root, meta.ScratchPath, meta.VolumePaths = m.Root, m.ScratchPath, m.VolumePaths
		err = claim.Commit(meta)
	}
	if err != nil {
		grace, cancel := r.VM.RollbackContext(ctx)
		defer cancel()
		if uerr := m.Release(grace); uerr != nil {
			return nil, fmt.Errorf("%w; and rolling back failed: %w", err, uerr)
		}
		return nil, err
	}
	return m, nil
}

// builders validate the request before anything is changed and return the function that mounts.
var builders = map[vmm.OS]func(context.Context, *Request) (func(context.Context, *Mounted) error, error){
	vmm.Linux:   buildLCOW,
	vmm.Windows: buildWCOW,
}

// buildLCOW prepares a Linux container: layers as VPMEM, or over SCSI if VPMEM is full, absent, not allowed or too
// small; the scratch over SCSI; an overlay.
func buildLCOW(_ context.Context, r *Request) (func(context.Context, *Mounted) error, error) {
	if r.RootFolder != "" {
		return func(ctx context.Context, m *Mounted) error { return mountFolder(ctx, r, m) }, nil
	}
	if r.RootDisk != "" {
		return r.buildDisk()
	}
	images, err := r.images()
	if err != nil {
		return nil, err
	}
	if len(images) == 0 && r.Scratch == "" {
		return nil, fmt.Errorf("%w: no layers and no scratch", ErrInvalid)
	}
	attachScratch := noScratch
	if r.Scratch != "" {
		if attachScratch, err = r.findScratch(); err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context, m *Mounted) error {
		guest, err := attachLayers(ctx, r, m.claim, images)
		if err != nil {
			return err
		}
		scratch, err := attachScratch(ctx, m.claim)
		if err != nil {
			return fmt.Errorf("scratch: %w", err)
		}
		switch {
		case r.WholeScratch:
			m.ScratchPath = scratch
		case scratch != "":
			// Containers that share a scratch each have a directory of their own on it.
			m.ScratchPath = scratch + "/scratch/" + r.ID
		}
		if err := attachVolumes(ctx, r, m); err != nil {
			return err
		}
		le, err := r.VM.CombineLayersLCOW(ctx, m.claim, r.GuestRoot+"/rootfs", guest, m.ScratchPath)
		if err != nil {
			return err
		}
		m.Root = le.GuestPath()
		return attachNetwork(ctx, r, m)
	}, nil
}

func attachNetwork(ctx context.Context, r *Request, m *Mounted) (err error) {
	if r.Network != nil {
		_, err = r.VM.AttachNetwork(ctx, m.claim, roleNetwork, *r.Network)
	}
	return err
}

// scratchFunc attaches the scratch of a Linux container and returns its mount point in the guest.
type scratchFunc func(context.Context, *uvm.Claim) (string, error)

func noScratch(context.Context, *uvm.Claim) (string, error) { return "", nil }

// findScratch finds the scratch: a disk, or a folder without one if the machine supports that.
func (r *Request) findScratch() (scratchFunc, error) {
	if r.VM.Limits().ScratchFolders && !r.WholeScratch {
		folder, err := r.scratchFolder()
		if err != nil || folder != "" {
			return func(ctx context.Context, c *uvm.Claim) (string, error) {
				le, err := r.VM.Plan9().Share(ctx, c, roleScratch, folder, r.GuestRoot, false)
				if err != nil {
					return "", err
				}
				return le.GuestPath(), nil
			}, err
		}
	}
	disk, err := r.scratchDisk()
	return func(ctx context.Context, c *uvm.Claim) (string, error) {
		d := wholeDisk(disk, r.GuestRoot)
		if !r.WholeScratch {
			d = uvm.Disk{Path: disk, Access: vmm.AccessIndividual,
				Mount: &uvm.DiskMount{GuestPath: r.GuestRoot, Filesystem: "ext4", EnsureFilesystem: true}}
		}
		le, err := r.VM.SCSI().Attach(ctx, c, roleScratch, d)
		if err != nil {
			return "", err
		}
		return le.GuestPath(), nil
	}, err
}

// buildWCOW prepares a Windows container in a VM: VSMB shares, scratch disk, layer filter.
func buildWCOW(ctx context.Context, r *Request) (func(context.Context, *Mounted) error, error) {
	if r.Scratch == "" {
		return nil, fmt.Errorf("%w: a Windows container needs a scratch", ErrInvalid)
	}
	if r.VM.Limits().WritableLayers {
		return buildHost(r)
	}
	if r.Host == nil && r.CIM == nil {
		return nil, fmt.Errorf("%w: Request.Host is needed for the layers' identities", ErrInvalid)
	}
	if err := r.folders(); err != nil {
		return nil, err
	}
	disk, err := r.scratchDisk()
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, m *Mounted) error {
		attach, filter := shareLayers, ""
		if r.CIM != nil {
			attach, filter = attachCIM, unionFS
		}
		guest, err := attach(ctx, r, m.claim)
		if err != nil {
			return err
		}
		le, err := r.VM.SCSI().Attach(ctx, m.claim, roleScratch, uvm.Disk{
			Path: disk, Access: vmm.AccessIndividual, Mount: &uvm.DiskMount{GuestPath: r.GuestRoot}})
		if err != nil {
			return fmt.Errorf("scratch: %w", err)
		}
		if err := identify(ctx, r, guest); err != nil {
			return err
		}
		root, err := r.VM.CombineLayersWCOW(ctx, m.claim, le.GuestPath(), guest, filter)
		if err != nil {
			return err
		}
		m.Root, m.ScratchPath = root.GuestPath(), le.GuestPath()
		return nil
	}, nil
}

var layerShare = func() vmm.VSMBOptions {
	o := uvm.ReadOnlyShare
	o.TakeBackupPrivilege = true
	return o
}()

// shareLayers shares the layer folders with a Windows VM.
func shareLayers(ctx context.Context, r *Request, c *uvm.Claim) ([]vmm.GuestLayer, error) {
	guest := make([]vmm.GuestLayer, len(r.Layers))
	for i, l := range r.Layers {
		le, err := r.VM.VSMB().Share(ctx, c, roleLayer, l.Folder, layerShare)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.Folder, err)
		}
		guest[i].Path = le.GuestPath()
	}
	return guest, nil
}

// identify sets the identities of the layer folders.
func identify(ctx context.Context, r *Request, guest []vmm.GuestLayer) error {
	for i, l := range r.Layers {
		id, err := r.Host.LayerID(ctx, l.Folder)
		if err != nil {
			return fmt.Errorf("identity of layer %s: %w", l.Folder, err)
		}
		guest[i].ID = id
	}
	return nil
}
