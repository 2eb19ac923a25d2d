package layers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/uvm"
)

// UnmountOperation selects the kinds of resources to release; the bits may be combined.
type UnmountOperation uint

// The kinds. The values are those of hcsshim.
const (
	UnmountOperationSCSI  UnmountOperation = 0x01 // the scratch disk
	UnmountOperationVSMB  UnmountOperation = 0x02 // layers of a Windows VM
	UnmountOperationVPMEM UnmountOperation = 0x04 // layers of a Linux VM, on VPMEM or SCSI
	UnmountOperationAll                    = UnmountOperationSCSI | UnmountOperationVSMB | UnmountOperationVPMEM
)

func (op UnmountOperation) check() error {
	if op == 0 || op&^UnmountOperationAll != 0 {
		return fmt.Errorf("%w: unmount operation %#x: use SCSI (1), VSMB (2), VPMEM (4) or their sum",
			ErrInvalid, uint(op))
	}
	return nil
}

// request converts the single list of hcsshim's API to a Request.
func request(layerFolders []string, guestRoot string, vm *uvm.UtilityVM, host wclayer.Host, n names) (Request, error) {
	if len(layerFolders) == 0 {
		return Request{}, fmt.Errorf("%w: no layer folders: give the layers top-most first, then the scratch",
			ErrInvalid)
	}
	if vm == nil && len(layerFolders) < 2 {
		return Request{}, fmt.Errorf("%w: %d layer folder: give at least one layer and the scratch",
			ErrInvalid, len(layerFolders))
	}
	last := len(layerFolders) - 1
	r := Request{VM: vm, GuestRoot: guestRoot, Scratch: layerFolders[last], Host: host, names: n}
	if vm == nil {
		r.ID = hostpath.Base(r.Scratch)
	}
	for _, folder := range layerFolders[:last] {
		r.Layers = append(r.Layers, Layer{Folder: folder})
	}
	return r, nil
}

// Mounter is hcsshim's API on the Windows host Host; nil: the host that this program runs on. The package's functions
// of the same names are its methods on the zero value.
type Mounter struct {
	Host wclayer.Host

	names names
}

func (mt Mounter) host() wclayer.Host {
	if mt.Host == nil {
		return wclayer.Shared()
	}
	return mt.Host
}

// MountContainerLayers mounts layerFolders (layers top layer first, the scratch last) and returns the path of the
// root: in the guest under guestRoot or, with a nil vm, a volume GUID path of this Windows host. The container's id is
// the last element of guestRoot. It behaves like hcsshim's function of January 2021, except that each container has
// its own directory on the scratch, and that no error is ignored. See Mount for more.
func MountContainerLayers(ctx context.Context, layerFolders []string, guestRoot string, vm *uvm.UtilityVM) (
	string, error) {
	return Mounter{}.MountContainerLayers(ctx, layerFolders, guestRoot, vm)
}

// MountContainerLayers is the package's function of that name with mt.Host.
func (mt Mounter) MountContainerLayers(ctx context.Context, layerFolders []string, guestRoot string,
	vm *uvm.UtilityVM) (string, error) {
	r, err := request(layerFolders, guestRoot, vm, mt.host(), mt.names)
	if err != nil {
		return "", err
	}
	if vm == nil {
		return mt.mountHere(ctx, r)
	}
	m, err := Mount(ctx, r)
	if err != nil {
		return "", err
	}
	return m.Root, nil
}

// UnmountContainerLayers undoes MountContainerLayers, or the parts that op selects; the combined root is always
// removed. containerRootPath is the guestRoot of the mount, or the path that it returned. It tries every part, joins
// the errors, and may be called again. Without a VM op must be UnmountOperationAll.
func UnmountContainerLayers(ctx context.Context, layerFolders []string, containerRootPath string,
	vm *uvm.UtilityVM, op UnmountOperation) error {
	return Mounter{}.UnmountContainerLayers(ctx, layerFolders, containerRootPath, vm, op)
}

// UnmountContainerLayers is the package's function of that name with mt.Host.
func (mt Mounter) UnmountContainerLayers(ctx context.Context, layerFolders []string, containerRootPath string,
	vm *uvm.UtilityVM, op UnmountOperation) error {
	if len(layerFolders) == 0 {
		return fmt.Errorf("%w: no layer folders: give the list that was mounted", ErrInvalid)
	}
	if err := op.check(); err != nil {
		return err
	}
	if vm == nil {
		return mt.unmountHere(ctx, layerFolders[len(layerFolders)-1], op)
	}
	m, err := openAt(vm, containerRootPath)
	if err != nil {
		return fmt.Errorf("unmount layers of %s: %w", containerRootPath, err)
	}
	return m.release(ctx, op)
}

// release removes the root and releases what op selects: SCSI the scratch, VSMB the layers of a Windows VM, VPMEM the
// layers of a Linux VM, however they are attached.
func (m *Mounted) release(ctx context.Context, op UnmountOperation) error {
	if err := op.check(); err != nil {
		return fmt.Errorf("unmount layers of container %q: %w", m.ID, err)
	}
	leases := m.claim.Leases()
	if err := m.claim.Release(ctx, releaseOrder(leases, op)); err != nil {
		return fmt.Errorf("unmount layers of container %q: %w", m.ID, err)
	}
	return nil
}

// releaseOrder returns the leases that op selects in the order of release: the root first, layers last.
func releaseOrder(leases []*uvm.Lease, op UnmountOperation) []*uvm.Lease {
	out := []*uvm.Lease{} // not nil, which means all
	for _, pass := range []struct {
		role string
		bit  UnmountOperation // 0: always
		kind uvm.Kind         // "": any
	}{
		{role: roleRoot},
		{role: roleNetwork},
		{role: roleCIM},
		{role: roleScratch, bit: UnmountOperationSCSI},
		{role: roleCIMDisk},
		{role: roleVolume},
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

// openAt opens the container whose guestRoot or root is path. Its id is the last element of the guestRoot.
func openAt(vm *uvm.UtilityVM, path string) (*Mounted, error) {
	ids := []string{hostpath.Base(path)}
	if guest, ok := strings.CutSuffix(path, "/rootfs"); ok && guest != "" {
		ids = append(ids, hostpath.Base(guest)) // callers of hcsshim pass the combined root
	}
	want := hostpath.Identity(path)
	for _, id := range ids {
		m, err := Open(vm, id)
		if errors.Is(err, uvm.ErrUnknownClaim) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if want == hostpath.Identity(m.guestRoot) || want == hostpath.Identity(m.Root) {
			return m, nil
		}
	}
	return nil, uvm.ErrNotAttached
}

// GetHCSLayers returns the layers in the form of a Windows VM's container document: the identity of each folder and
// the guest path of its share, in the order given. If a folder is not shared, the error matches uvm.ErrNotAttached.
func GetHCSLayers(ctx context.Context, vm *uvm.UtilityVM, paths []string) ([]hcsschema.Layer, error) {
	return Mounter{}.GetHCSLayers(ctx, vm, paths)
}

// GetHCSLayers is the package's function of that name with mt.Host.
func (mt Mounter) GetHCSLayers(ctx context.Context, vm *uvm.UtilityVM, paths []string) ([]hcsschema.Layer, error) {
	out := make([]hcsschema.Layer, len(paths))
	for i, p := range paths {
		guest, err := vm.VSMB().GuestPath(p, true)
		if err != nil {
			return nil, fmt.Errorf("HCS layers: %w", err)
		}
		id, err := mt.host().LayerID(ctx, p)
		if err != nil {
			return nil, fmt.Errorf("HCS layers: identity of %s: %w", p, err)
		}
		out[i] = hcsschema.Layer{Id: id, Path: guest}
	}
	return out, nil
}

// ImageLayers holds the arguments of a MountContainerLayers call, for the release.
type ImageLayers struct {
	mounter            Mounter
	vm                 *uvm.UtilityVM
	containerRootInUVM string
	layers             []string
	done               bool // the last Release succeeded
}

// NewImageLayers returns the ImageLayers of a mount: the VM (nil for this Windows host), the guestRoot and the list.
func NewImageLayers(vm *uvm.UtilityVM, containerRootInUVM string, layers []string) *ImageLayers {
	return Mounter{}.NewImageLayers(vm, containerRootInUVM, layers)
}

// NewImageLayers is the package's function of that name with mt.Host.
func (mt Mounter) NewImageLayers(vm *uvm.UtilityVM, containerRootInUVM string, layers []string) *ImageLayers {
	return &ImageLayers{mounter: mt, vm: vm, containerRootInUVM: containerRootInUVM, layers: slices.Clone(layers)}
}

// Release unmounts the layers. With all, or without a VM, it releases everything; otherwise only the scratch, for a VM
// that is about to be shut down. It may be called again after a failure; after success it does nothing.
func (il *ImageLayers) Release(ctx context.Context, all bool) error {
	if il.done && (il.vm == nil || !all) {
		return nil
	}
	op := UnmountOperationSCSI
	if il.vm == nil || all {
		op = UnmountOperationAll
	}
	err := il.mounter.UnmountContainerLayers(ctx, il.layers, il.containerRootInUVM, il.vm, op)
	if il.done && errors.Is(err, uvm.ErrNotAttached) {
		err = nil // nothing but the scratch was held
	}
	if err == nil {
		il.done = true
	}
	return err
}
