package layers

import (
	"context"
	"fmt"

	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// Roles of the leases of a container.
const (
	roleLayer   = "layer"
	roleScratch = "scratch"
	roleRoot    = "root"
	roleCIM     = "cims"
	roleCIMDisk = "cim"
)

// Meta is what is kept with a container in the VM's journal.
type Meta struct {
	GuestRoot   string   `json:"guestRoot"`
	Root        string   `json:"root,omitempty"`
	ScratchPath string   `json:"scratchPath,omitempty"` // the container's own directory on the scratch
	Layers      []string `json:"layers"`                // host paths, top-most first
	Scratch     string   `json:"scratch,omitempty"`     // host path
}

// Mounted is a container's root that is mounted, or what is left of it.
type Mounted struct {
	// ID is the container's id.
	ID string
	// Root is the root file system: a guest path, or on the host a volume GUID path.
	Root string
	// ScratchPath is the container's own directory on the scratch, as the guest sees it.
	ScratchPath string

	vm        *uvm.UtilityVM
	claim     *uvm.Claim
	argon     *argon
	guestRoot string // the container's directory in the guest
}

// Mount makes the root. Layers and scratch that are in the VM already are shared. When it fails,
// everything it did is taken back; what cannot be taken back is named in the error, stays in the
// VM's journal under the container's id, and goes with the next Mount or Recover.
func Mount(ctx context.Context, r Request) (*Mounted, error) {
	m, err := mount(ctx, &r)
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
		return mountArgon(ctx, r)
	}
	build, ok := builders[r.VM.OS()]
	if !ok {
		return nil, fmt.Errorf("guest system %q: %w", r.VM.OS(), uvm.ErrNotSupported)
	}
	prepared, err := build(ctx, r)
	if err != nil {
		return nil, err
	}
	meta := Meta{GuestRoot: r.GuestRoot, Scratch: r.Scratch}
	for _, l := range r.Layers {
		meta.Layers = append(meta.Layers, l.Folder+l.File)
	}
	claim, err := r.VM.Claim(ctx, r.ID, meta)
	if err != nil {
		return nil, err
	}
	m := &Mounted{ID: r.ID, vm: r.VM, claim: claim}
	ctx = uvm.WithRollbackBudget(ctx)
	err = prepared(ctx, m)
	if err == nil {
		meta.Root, meta.ScratchPath = m.Root, m.ScratchPath
		err = claim.Commit(meta)
	}
	if err != nil {
		grace, cancel := r.VM.RollbackContext(ctx)
		defer cancel()
		if uerr := m.Release(grace, UnmountOperationAll); uerr != nil {
			return nil, fmt.Errorf("%w; and taking back what was done failed: %w", err, uerr)
		}
		return nil, err
	}
	return m, nil
}

// builders look at the request before anything is touched and give the function that does the work.
var builders = map[vmm.OS]func(context.Context, *Request) (func(context.Context, *Mounted) error, error){
	vmm.Linux:   buildLCOW,
	vmm.Windows: buildWCOW,
}

// Open gives the container of an id that is mounted in the VM, by whichever process.
func Open(vm *uvm.UtilityVM, id string) (*Mounted, error) {
	claim, err := vm.FindClaim(id)
	if err != nil {
		return nil, err
	}
	var meta Meta
	if err := claim.Meta(&meta); err != nil {
		return nil, fmt.Errorf("container %q: %w", id, err)
	}
	return &Mounted{ID: id, Root: meta.Root, ScratchPath: meta.ScratchPath, vm: vm, claim: claim, guestRoot: meta.GuestRoot}, nil
}

// Release takes the root away and gives up the kinds of resources that op names: SCSI is the
// scratch, VSMB the layers of a Windows VM, VPMEM the layers of a Linux VM, wherever they ended up.
// The combined root always goes. It attempts everything and joins the errors; it is idempotent, and
// after a failure it can be called again and continues. When the VM is gone it succeeds.
func (m *Mounted) Release(ctx context.Context, op UnmountOperation) error {
	if err := op.check(); err != nil {
		return fmt.Errorf("unmount layers of container %q: %w", m.ID, err)
	}
	if m.argon != nil {
		return m.argon.release(ctx, op)
	}
	leases := m.claim.Leases()
	if err := m.claim.Release(ctx, releaseOrder(leases, op)); err != nil {
		return fmt.Errorf("unmount layers of container %q: %w", m.ID, err)
	}
	return nil
}

// releaseOrder picks what op names: the root, the scratch, then the layers as they were mounted.
func releaseOrder(leases []*uvm.Lease, op UnmountOperation) []*uvm.Lease {
	out := []*uvm.Lease{} // never nil: that would mean all
	for _, pass := range []struct {
		role string
		bit  UnmountOperation // 0: always
		kind uvm.Kind         // "": any
	}{
		{role: roleRoot},
		{role: roleCIM},
		{role: roleScratch, bit: UnmountOperationSCSI},
		{role: roleCIMDisk},
		{role: roleLayer, bit: UnmountOperationVSMB, kind: uvm.KindVSMB},
		{role: roleLayer, bit: UnmountOperationVPMEM, kind: uvm.KindVPMEM},
		{role: roleLayer, bit: UnmountOperationVPMEM, kind: uvm.KindSCSI},
		{role: roleLayer, bit: UnmountOperationVPMEM, kind: uvm.KindPlan9},
	} {
		if pass.bit != 0 && op&pass.bit == 0 {
			continue
		}
		for _, le := range leases {
			if le.Role() == pass.role && (pass.kind == "" || le.Kind() == pass.kind) {
				out = append(out, le)
			}
		}
	}
	return out
}

// buildLCOW prepares a Linux container: VPMEM first, SCSI when that is full, absent, not allowed or
// too small for the layer; scratch by SCSI; overlay.
func buildLCOW(_ context.Context, r *Request) (func(context.Context, *Mounted) error, error) {
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
		if scratch != "" {
			// Containers that share a scratch each have a directory of their own on it.
			m.ScratchPath = scratch + "/scratch/" + r.ID
		}
		le, err := r.VM.CombineLayersLCOW(ctx, m.claim, r.GuestRoot+"/rootfs", guest, m.ScratchPath)
		if err != nil {
			return err
		}
		m.Root = le.GuestPath()
		return nil
	}, nil
}

// scratchFunc attaches the scratch of a Linux container and gives the guest path of the whole of it.
type scratchFunc func(context.Context, *uvm.Claim) (string, error)

func noScratch(context.Context, *uvm.Claim) (string, error) { return "", nil }

// findScratch looks at the scratch: a disk, or where the machine can write to it a folder without one.
func (r *Request) findScratch() (scratchFunc, error) {
	if r.VM.Limits().ScratchFolders {
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
		le, err := r.VM.SCSI().Attach(ctx, c, roleScratch, uvm.Disk{
			Path: disk, Access: vmm.AccessIndividual,
			Mount: &uvm.DiskMount{GuestPath: r.GuestRoot, Filesystem: "ext4", EnsureFilesystem: true},
		})
		if err != nil {
			return "", err
		}
		return le.GuestPath(), nil
	}, err
}

// buildWCOW prepares a Windows container in a VM: shares, scratch disk, layer filter.
func buildWCOW(ctx context.Context, r *Request) (func(context.Context, *Mounted) error, error) {
	if r.Scratch == "" {
		return nil, fmt.Errorf("%w: a Windows container needs a scratch", ErrInvalid)
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

// identify adds the identities of layer folders.
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
