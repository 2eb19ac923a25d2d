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

// Sentinels that errors of this package match with errors.Is, besides those of uvm and vmm.
var (
	// ErrInvalid: the request makes no sense; nothing was touched.
	ErrInvalid = errors.New("invalid request")
	// ErrDuplicateLayer: a layer is named twice. An overlay cannot have it twice.
	ErrDuplicateLayer = fmt.Errorf("%w: duplicate layer", ErrInvalid)
	// ErrLayerOrder: layerchain.json contradicts the order given.
	ErrLayerOrder = layerdir.ErrChainOrder
	// ErrUnchecked: a layer has a dm-verity hash tree and the machine cannot check it.
	ErrUnchecked = fmt.Errorf("checking layers with dm-verity: %w", uvm.ErrNotSupported)
)

// Layer is one read-only layer as it is mounted: a file or folder. Where images come from it is an image.Layer.
type Layer struct {
	// Folder is the layer's folder. A Linux layer folder holds layer.vhd, layer.erofs or layer.dir, a
	// Windows one the layer's files.
	Folder string
	// File names the image itself instead of a folder that holds it.
	File string
	// Partition of the image, 1-based; 0 is the whole image.
	Partition uint64
	// Verity, when set, makes the guest check the layer against a dm-verity root digest. Without it
	// the digest that was recorded in the folder when the layer was made counts, if there is one. Where
	// nobody can check it, mounting fails with ErrUnchecked; see Request.AllowUnchecked. An image with a
	// hash tree and without a record, as other tools make it, is checked against its own tree where the
	// guest can, and is mounted unchecked where it cannot.
	Verity *vmm.Verity
}

// Host is a Windows host and its layers.
type Host = wclayer.Host

// Request says what to mount.
type Request struct {
	// VM is the utility VM, or this system itself.
	VM *uvm.UtilityVM
	// ID is the container's id, unique in the VM. Empty: the last part of GuestRoot.
	ID string
	// Layers are the read-only layers, top-most first.
	Layers []Layer
	// RootFolder, instead of Layers and Scratch, is a folder of the host that is the root itself, shared with a Linux VM:
	// what is written there is seen here. Device nodes cannot be made in it, and extended attributes are not seen.
	RootFolder string
	// RootDisk, instead of Layers and Scratch, is a raw disk of the host with an ext4 file system that is the root itself:
	// what is written there stays on the disk. It is one container's alone.
	RootDisk string
	// Scratch is the folder that holds sandbox.vhdx (which may be a link to that of another
	// container), or a disk image itself; without a VM on Linux it may be a folder that is written to
	// itself. Empty makes a read-only root, with Linux only.
	Scratch string
	// WholeScratch says that Scratch is a raw disk with an ext4 file system, and one container's alone: what is written is
	// in the folder upper of the disk itself, where others find it.
	WholeScratch bool
	// GuestRoot is the container's directory in the guest. Empty: /run/gcs/c/<ID> or C:\c\<ID>.
	GuestRoot string
	// Host does what needs the Windows host: Windows VMs, whose layers have identities, and MountV1. Nil: the host
	// that this program runs on.
	Host Host
	// CIM, instead of Layers, is the composite image of a Windows container.
	CIM *CIMMount
	// Attach says how the layers travel into a Linux VM.
	Attach Attach
	// AllowUnchecked mounts layers with a hash tree without a check where the machine cannot make one
	// (vmm.Limits.Verity).
	AllowUnchecked bool
	// Volumes are folders and files of the host that the container is to have; Mounted.VolumePaths says where they are.
	Volumes []Volume
	// Image, when set, is kept with the container: Lookup and Mounted.Image give it back.
	Image *Image
	// Network, when set, gives the container of a Linux VM a network of its own, which goes with it.
	Network *uvm.Network

	names  names // nil: those of the host
	unseen bool  // folders are not looked at: the platform says what is missing, as hcsshim's callers expect
}

// names says what is at a path of the host and where its links lead. Tests of Windows hosts replace it on
// other systems. What a layer's folder records (its parents, owners and the digest of its hash tree) is
// always read from the host's own files.
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
// It is no regular expression, whose making would cost each start of the guest's agent.
func validID(id string) bool {
	for i, c := range []byte(id) {
		alnum := c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return id != "" && len(id) <= maxID
}

// complete fills in defaults and refuses what makes no sense.
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

// localPath refuses, with an error that matches invalid, what is no path of a file or folder on a
// volume of this host.
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
