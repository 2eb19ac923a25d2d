package wclayer

import (
	"context"

	"github.com/Microsoft/go-winio/pkg/guid"
)

// Host is a Windows host with its layers. Folders, files and volumes are absolute Windows paths. All methods may be
// called concurrently; calls on the same folder are serialized.
//
// Errors of the platform are [*Error]; bad arguments match [ErrInvalid]; when ctx ends during a call
// the error matches [ErrUnfinished] and the context's cause.
type Host interface {
	// Activate attaches the scratch disk of a folder and makes its volume available.
	Activate(ctx context.Context, folder string) error
	// Deactivate undoes Activate. It is no error if the scratch's device does not exist any more.
	Deactivate(ctx context.Context, folder string) error
	// Prepare attaches the layer filter with the parents to an activated scratch. All Prepare calls of a System are
	// serialized. After the codes "not ready" and "not connected" it deactivates and activates the scratch and retries,
	// up to five attempts.
	Prepare(ctx context.Context, folder string, parents []string) error
	// Unprepare undoes Prepare. It is no error if the filter is not attached.
	Unprepare(ctx context.Context, folder string) error
	// MountPath returns the volume GUID path of an activated scratch, with its trailing backslash; for a read-only
	// layer the folder; empty if there is none.
	MountPath(ctx context.Context, folder string) (string, error)
	// LayerExists reports whether the platform knows the folder as a layer.
	LayerExists(ctx context.Context, folder string) (bool, error)
	// LayerID returns the id of a folder: the platform's GUID for its last path component, in lower case, without
	// braces.
	LayerID(ctx context.Context, folder string) (string, error)

	// CreateScratch creates a folder with a sandbox.vhdx on top of parents.
	CreateScratch(ctx context.Context, folder string, parents []string) error
	// ExpandScratch grows the disk of a scratch to size bytes, and then its file system. It never shrinks them. The
	// scratch must not be activated.
	ExpandScratch(ctx context.Context, folder string, size uint64) error
	// Destroy deletes a layer folder. While the folder, or one above or below it, is mounted or is a parent of
	// something mounted, by this process or another, the error matches ErrInUse: the platform would destroy data. It
	// only knows mounts of Systems with the same UsesDir; the caller must check the layers of virtual machines.
	Destroy(ctx context.Context, folder string) error

	// GrantVMAccess allows one VM to open a file; for scratches. RevokeVMAccess undoes it.
	GrantVMAccess(ctx context.Context, vmID, file string) error
	RevokeVMAccess(ctx context.Context, vmID, file string) error
	// GrantVMGroupAccess allows all VMs to read a file or folder; for layers, because the number of grants per file is
	// limited.
	GrantVMGroupAccess(ctx context.Context, path string) error

	// AttachFilter attaches the layer filter with parents to a volume; it is the newer form of Prepare.
	AttachFilter(ctx context.Context, volume string, parents []string) error
	DetachFilter(ctx context.Context, volume string) error
	// AttachOverlay attaches layers, topmost first, to a volume as an overlay (UnionFS).
	AttachOverlay(ctx context.Context, volume string, layers []OverlayLayer) error
	DetachOverlay(ctx context.Context, volume string) error
	// InitializeWritable initializes the folder or volume of a writable layer from its parents.
	InitializeWritable(ctx context.Context, folder string, parents []string) error
	// FormatVHD formats a disk file as a writable layer.
	FormatVHD(ctx context.Context, file string) error
	// VHDMountPath attaches a disk file, until DetachVHD or the end of the process, and returns the path of its volume.
	VHDMountPath(ctx context.Context, file string) (string, error)
	// DetachVHD detaches a disk file that VHDMountPath attached.
	DetachVHD(ctx context.Context, file string) error

	// MountCIM mounts composite images as the volume with the given GUID and returns its path,
	// \\?\Volume{guid}\. Container content is in its folder Files.
	MountCIM(ctx context.Context, volume guid.GUID, m CIMMount) (string, error)
	// DismountCIM undoes MountCIM. It is no error if the images are not mounted.
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

// BlockType is the kind of storage of an image.
type BlockType uint8

// The kinds of images.
const (
	Forked      BlockType = iota // files in a folder
	BlockDevice                  // on a raw block device
	BlockFile                    // in a single file
)

// CIMMount are the images to mount.
type CIMMount struct {
	Kind BlockType
	// Image is the image to mount. With Sources, it is the image merged from them.
	Image CIM
	// Sources are the images from which Image was merged, topmost first, in the order of the merge: none or at least
	// two.
	Sources []CIM
	// Digest, if not nil, is the required root digest of the image; 32 bytes.
	Digest []byte
	// DAX maps the files directly.
	DAX bool
}
