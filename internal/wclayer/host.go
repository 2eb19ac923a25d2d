package wclayer

import (
	"context"

	"github.com/Microsoft/go-winio/pkg/guid"
)

// Host is a Windows host and its layers. Folders, files and volumes are absolute Windows paths. All
// methods may be called concurrently; calls on one folder follow each other.
//
// Errors of the platform are [*Error]; bad arguments match [ErrInvalid]; when ctx ends during a call
// the error matches [ErrUnfinished] and the context's cause.
type Host interface {
	// Activate attaches the scratch disk of a folder and makes its volume available.
	Activate(ctx context.Context, folder string) error
	// Deactivate is its inverse. A scratch whose device is gone counts as deactivated.
	Deactivate(ctx context.Context, folder string) error
	// Prepare attaches the layer filter with the parents to an activated scratch. All Prepare calls of
	// a System follow each other, and codes "not ready" and "not connected" are tried again five
	// times in all, deactivating and activating the scratch in between.
	Prepare(ctx context.Context, folder string, parents []string) error
	// Unprepare is its inverse. A filter that is not there counts as detached.
	Unprepare(ctx context.Context, folder string) error
	// MountPath is the volume GUID path of an activated scratch, with its trailing backslash; for a
	// read-only layer the folder; empty when there is none.
	MountPath(ctx context.Context, folder string) (string, error)
	// LayerExists reports whether the platform knows the folder as a layer.
	LayerExists(ctx context.Context, folder string) (bool, error)
	// LayerID is the identity of a folder: the platform's GUID for its last path component, in lower
	// case, without braces.
	LayerID(ctx context.Context, folder string) (string, error)

	// CreateScratch creates a folder with a sandbox.vhdx on top of parents.
	CreateScratch(ctx context.Context, folder string, parents []string) error
	// ExpandScratch grows the disk of a scratch to size bytes and its file system after it. It never
	// shrinks. The scratch must not be activated.
	ExpandScratch(ctx context.Context, folder string, size uint64) error
	// Destroy deletes a layer folder. It is refused with ErrInUse while the folder is mounted or is a
	// parent of something mounted, by this process or another: the platform would destroy data.
	// The same goes for folders above and below it. What is mounted is known of Systems with the same
	// UsesDir; layers that virtual machines have are not: ask those.
	Destroy(ctx context.Context, folder string) error

	// GrantVMAccess lets one VM open a file; for scratches. RevokeVMAccess takes that back.
	GrantVMAccess(ctx context.Context, vmID, file string) error
	RevokeVMAccess(ctx context.Context, vmID, file string) error
	// GrantVMGroupAccess lets all VMs read a file or folder; for layers, since grants per VM pile up
	// until the platform refuses more.
	GrantVMGroupAccess(ctx context.Context, path string) error

	// AttachFilter attaches the layer filter with parents to a volume; the newer way of Prepare.
	AttachFilter(ctx context.Context, volume string, parents []string) error
	DetachFilter(ctx context.Context, volume string) error
	// AttachOverlay shows layers united with a volume (UnionFS), top-most layer first.
	AttachOverlay(ctx context.Context, volume string, layers []OverlayLayer) error
	DetachOverlay(ctx context.Context, volume string) error
	// InitializeWritable fills the folder or volume of a writable layer with what its parents ask for.
	InitializeWritable(ctx context.Context, folder string, parents []string) error
	// FormatVHD formats a disk file as a writable layer.
	FormatVHD(ctx context.Context, file string) error
	// VHDMountPath attaches a disk file for the life of the process, or until it is detached, and
	// returns the volume path of what is on it.
	VHDMountPath(ctx context.Context, file string) (string, error)
	// DetachVHD takes a disk file away that VHDMountPath attached.
	DetachVHD(ctx context.Context, file string) error

	// MountCIM mounts composite images as the volume with the given GUID and returns its path,
	// \\?\Volume{guid}\. Container content is in its folder Files.
	MountCIM(ctx context.Context, volume guid.GUID, m CIMMount) (string, error)
	// DismountCIM is its inverse. Images that are not mounted count as dismounted.
	DismountCIM(ctx context.Context, volume guid.GUID) error
}

// OverlayLayer is a layer of AttachOverlay.
type OverlayLayer struct {
	ID   guid.GUID // for a mounted image the GUID of its volume
	Path string    // the folder with the layer's files
}

// CIM is one composite image.
type CIM struct {
	// Dir is the folder that holds the image, or for a block image the path of the block device or
	// file itself.
	Dir string
	// Name is the image's name in it, such as "layer.cim".
	Name string
}

// BlockType says where block images live.
type BlockType uint8

// The kinds of images.
const (
	Forked      BlockType = iota // files in a folder
	BlockDevice                  // on a raw block device
	BlockFile                    // in a single file
)

// CIMMount says which images to mount.
type CIMMount struct {
	Kind BlockType
	// Image is the image to mount. With Sources it is the image merged from them.
	Image CIM
	// Sources are what Image was merged from, top-most first, the order of the merge; none or at least two.
	Sources []CIM
	// Digest, when it is not nil, is the root digest that the image must have; 32 bytes.
	Digest []byte
	// DAX maps the files directly.
	DAX bool
}
