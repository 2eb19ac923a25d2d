package layers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// Errors of this package match these sentinels with errors.Is, besides those of uvm and vmm.
var (
	// ErrInvalid: the request is invalid; nothing was changed.
	ErrInvalid = errors.New("invalid request")
	// ErrDuplicateLayer: a layer is given twice, which an overlay does not allow.
	ErrDuplicateLayer = fmt.Errorf("%w: duplicate layer", ErrInvalid)
	// ErrLayerOrder: the order of the layers contradicts layerchain.json.
	ErrLayerOrder = layerdir.ErrChainOrder
	// ErrUnchecked: a layer has a dm-verity hash tree, and the machine cannot verify it.
	ErrUnchecked = fmt.Errorf("checking layers with dm-verity: %w", uvm.ErrNotSupported)
)

// Layer is one read-only layer to mount: a file or a folder. (An image.Layer is a layer of an image in a registry or
// archive.)
type Layer struct {
	// Folder is the layer's folder. A Linux layer folder holds layer.vhd, layer.erofs or layer.dir, a
	// Windows one the layer's files.
	Folder string
	// File is the image itself, instead of a folder that contains it.
	File string
	// Partition of the image, 1-based; 0: the whole image.
	Partition uint64
	// Verity, if set, makes the guest verify the layer against a dm-verity root digest. If nil, the digest that was
	// recorded in the folder when the layer was created is used, if there is one. If the machine cannot verify it,
	// Mount fails with ErrUnchecked; see Request.AllowUnchecked. An image of other tools with a hash tree but without
	// a record is verified against its own tree if the guest supports it, and otherwise mounted without verification.
	Verity *vmm.Verity
}

// Host provides the layer functions of a Windows host.
type Host = wclayer.Host

// Request says what to mount.
type Request struct {
	// VM is the utility VM, or the host itself (see strata.OpenHost).
	VM *uvm.UtilityVM
	// ID is the container's id, unique in the VM. Empty: the last element of GuestRoot.
	ID string
	// Layers are the read-only layers, top layer first.
	Layers []Layer
	// RootFolder, instead of Layers and Scratch, is a host folder that is the root itself, shared with a Linux VM
	// read-write. Device nodes cannot be created in it, and extended attributes are not visible.
	RootFolder string
	// RootDisk, instead of Layers and Scratch, is a raw disk image on the host with an ext4 file system that is the
	// root itself, writable and persistent. Only one container may use it at a time.
	RootDisk string
	// Scratch is a folder with sandbox.vhdx (which may be a link to that of another container), or a disk image; on
	// the Linux host itself it may also be a folder that is used directly. Empty makes a read-only root, on Linux
	// only.
	Scratch string
	// WholeScratch says that Scratch is a raw disk image with an ext4 file system for this container only: what the
	// container writes is in the folder upper at the top of the disk, where other tools expect it.
	WholeScratch bool
	// GuestRoot is the container's directory in the guest. Empty: /run/gcs/c/<ID> or C:\c\<ID>.
	GuestRoot string
	// Host provides layer identities, for Windows VMs and MountV1. Nil: the host that this program runs on.
	Host Host
	// CIM, instead of Layers, is the composite image of a Windows container.
	CIM *CIMMount
	// Attach says how the layers are attached to a Linux VM.
	Attach Attach
	// AllowUnchecked mounts layers with a hash tree without verification if the machine cannot verify them
	// (vmm.Limits.Verity).
	AllowUnchecked bool
	// Volumes are host folders and files for the container; Mounted.VolumePaths has their paths.
	Volumes []Volume
	// Image, if set, is stored with the container; see Lookup and Mounted.Image.
	Image *Image
	// Network, if set, gives a Linux container a network of its own, until it is released.
	Network *uvm.Network

	names  names // nil: those of the host
	unseen bool  // do not check folders: hcsshim's callers expect the errors of the platform
}

// names resolves paths of the host. Tests of Windows hosts replace it on other systems. The records in a layer's
// folder (its parents, owners and root digest) are always read from the real file system.
type names interface {
	Stat(name string) (fs.FileInfo, error)
	// EvalSymlinks returns the path with all links resolved.
	EvalSymlinks(name string) (string, error)
}

type hostNames struct{}

func (hostNames) Stat(name string) (fs.FileInfo, error)    { return os.Stat(name) }
func (hostNames) EvalSymlinks(name string) (string, error) { return filepath.EvalSymlinks(name) }

// Files of layer folders.
const (
	layerVHD    = "layer.vhd"
	layerEROFS  = "layer.erofs"
	layerTree   = "layer.dir"
	sandboxVHDX = "sandbox.vhdx"
)

// maxID bounds a container id: it becomes a file name in the guest.
const maxID = 128

// validID reports whether id is 1 to maxID letters, digits, '_', '.' and '-', a letter or digit first.
// It is not a regular expression, as compiling one would delay each start of the guest agent.
func validID(id string) bool {
	for i, c := range []byte(id) {
		alnum := c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return id != "" && len(id) <= maxID
}

// complete sets defaults and validates the request.
func (r *Request) complete() error {
	if r.names == nil {
		r.names = hostNames{}
	}
	if r.Host == nil && wclayer.Supported() == nil {
		r.Host = wclayer.Shared()
	}
	if r.ID == "" && r.GuestRoot != "" {
		r.ID = hostpath.Base(r.GuestRoot)
	}
	if !validID(r.ID) {
		return fmt.Errorf("%w: container id %q: use 1 to 128 letters, digits, '_', '.' or '-', a letter or digit first",
			ErrInvalid, r.ID)
	}
	if r.GuestRoot == "" && r.VM != nil && !r.VM.Limits().WritableLayers {
		r.GuestRoot = guestRoots[r.VM.OS()] + r.ID
	}
	seen := map[string]string{}
	for i, l := range r.Layers {
		name := l.Folder + l.File
		if (l.Folder == "") == (l.File == "") {
			return fmt.Errorf("%w: layer %d: give a folder or a file", ErrInvalid, i+1)
		}
		if err := localPath(ErrInvalid, "layer", name); err != nil {
			return err
		}
		if r.windows() && (l.File != "" || l.Partition != 0) {
			return fmt.Errorf("%w: layer %q: a Windows layer is a folder, without file and partition", ErrInvalid, name)
		}
		if l.Verity != nil && l.Verity.RootDigest == "" {
			return fmt.Errorf("%w: layer %q: Verity without a root digest", ErrInvalid, name)
		}
		if l.Verity != nil && !r.checks() && !r.AllowUnchecked {
			return unchecked(name)
		}
		id := fmt.Sprintf("%s#%d", hostpath.Identity(name), l.Partition)
		if first, twice := seen[id]; twice {
			return fmt.Errorf("%w: %q (also given as %q)", ErrDuplicateLayer, name, first)
		}
		seen[id] = name
	}
	if r.Network != nil && r.windows() {
		return fmt.Errorf("%w: a network of its own is for Linux containers", ErrInvalid)
	}
	if err := r.checkVolumes(); err != nil {
		return err
	}
	if err := r.Image.check(); err != nil {
		return err
	}
	if r.RootFolder != "" {
		if err := r.checkRootFolder(); err != nil {
			return err
		}
	}
	if err := r.checkDisks(); err != nil {
		return err
	}
	if r.CIM != nil && len(r.Layers) > 0 {
		return fmt.Errorf("%w: give layers or a CIM, not both", ErrInvalid)
	}
	if r.CIM != nil {
		if err := r.checkCIM(); err != nil {
			return err
		}
	}
	if r.Scratch != "" {
		return localPath(ErrInvalid, "scratch", r.Scratch)
	}
	return nil
}

// windows reports whether the layers are for a Windows container.
func (r *Request) windows() bool { return r.VM == nil || r.VM.OS() == vmm.Windows }

// localPath returns an error matching invalid unless p is the absolute path of a file or folder on a local volume.
func localPath(invalid error, what, p string) error {
	switch why := hostpath.NotLocal(p); {
	case p == "":
		return fmt.Errorf("%w: the path of a %s is empty", invalid, what)
	case strings.ContainsRune(p, 0):
		return fmt.Errorf("%w: %s %q has a NUL character", invalid, what, p)
	case !hostpath.IsAbs(p):
		return fmt.Errorf("%w: %s %q: give an absolute path", invalid, what, p)
	case why != "":
		return fmt.Errorf("%w: %s %q is %s: copy it to a local volume", invalid, what, p, why)
	}
	return nil
}

var guestRoots = map[vmm.OS]string{vmm.Linux: "/run/gcs/c/", vmm.Windows: `C:\c\`}
