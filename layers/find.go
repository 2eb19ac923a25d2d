package layers

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/stratavm/strata/internal/format/verity"
	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/vmm"
)

// image is the disk image or directory tree of one layer, after validation.
type image struct {
	layer Layer
	path  string // symbolic links resolved
	size  int64
	// version changes when the file is replaced: its size and modification time. Layers are read-only, but a layer may
	// be imported again into the same folder.
	version string
	erofs   bool
	tree    bool
}

// folders checks the layer folders and the layer order of a Windows container: the platform accepts anything.
func (r *Request) folders() error {
	for _, l := range r.Layers {
		info, err := r.names.Stat(l.Folder)
		if err != nil {
			return fmt.Errorf("layer %s: import the layer first: %w", l.Folder, err)
		}
		if !info.IsDir() {
			return fmt.Errorf("%w: layer %s is no folder", ErrInvalid, l.Folder)
		}
	}
	return r.checkOrder()
}

// images finds the disk image of every layer of a Linux container and checks the order.
func (r *Request) images() ([]image, error) {
	out := make([]image, len(r.Layers))
	for i, l := range r.Layers {
		img, err := r.findImage(l)
		if err != nil {
			return nil, err
		}
		out[i] = img
	}
	return out, r.checkOrder()
}

// checkOrder compares the given order with the parents recorded in the layer folders.
func (r *Request) checkOrder() error {
	var folders []string
	for _, l := range r.Layers {
		if folder := l.folder(); folder != "" {
			folders = append(folders, folder)
		}
	}
	if err := layerdir.CheckChain(folders); err != nil {
		return fmt.Errorf("layers of %s: %w", r.ID, err)
	}
	return nil
}

// folder returns the layer's folder, even if the layer was given as the file in it; "" for a file that is not in a
// layer folder.
func (l Layer) folder() string {
	if l.Folder != "" || l.Partition != 0 {
		return l.Folder
	}
	switch name := hostpath.Base(l.File); name {
	case layerVHD, layerEROFS, layerTree:
		return strings.TrimRight(strings.TrimSuffix(l.File, name), `/\`)
	}
	return ""
}

// findImage finds the image in a layer folder: layer.erofs if the VM can mount it, else layer.vhd; layer.dir if it
// cannot mount disks.
func (r *Request) findImage(l Layer) (image, error) {
	candidates := []string{l.File}
	if l.File == "" {
		candidates = r.candidates(l.Folder)
	}
	var path string
	var info fs.FileInfo
	var err error
	for _, path = range candidates {
		if info, err = r.names.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err == nil {
		err = r.checkFile(path, info)
	}
	if err != nil {
		return image{}, r.explainMissing(l, path, err)
	}
	resolved, err := r.names.EvalSymlinks(path)
	if err != nil {
		return image{}, fmt.Errorf("layer %s: %w", path, err)
	}
	if r.VM.Limits().LayerFolders {
		return image{layer: l, path: resolved, tree: true}, r.checkTree(l, resolved)
	}
	img := image{layer: l, path: resolved, size: info.Size(), erofs: hostpath.Ext(path) == ".erofs",
		version: fmt.Sprintf("%d.%d", info.Size(), info.ModTime().UnixNano())}
	return img, r.findVerity(&img, path)
}

// candidates returns the paths of the images in a layer folder that the VM can mount, best first.
func (r *Request) candidates(folder string) []string {
	switch lim := r.VM.Limits(); {
	case lim.LayerFolders:
		return []string{hostpath.Join(folder, layerTree)}
	case lim.EROFS:
		return []string{hostpath.Join(folder, layerEROFS), hostpath.Join(folder, layerVHD)}
	}
	return []string{hostpath.Join(folder, layerVHD)}
}

// checkFile refuses a file that cannot be a layer's image.
func (r *Request) checkFile(path string, info fs.FileInfo) error {
	trees := r.VM.Limits().LayerFolders
	switch {
	case trees && !info.IsDir():
		return fmt.Errorf("%w: %s is no directory, and in a user namespace no disk can be mounted", ErrInvalid, path)
	case trees:
	case !info.Mode().IsRegular():
		return fmt.Errorf("%w: %s is not a regular file", ErrInvalid, path)
	case info.Size() == 0:
		return fmt.Errorf("%w: %s is empty; import the layer again", ErrInvalid, path)
	}
	return nil
}

// explainMissing wraps the error of the last candidate with a remedy.
func (r *Request) explainMissing(l Layer, path string, err error) error {
	name := l.Folder + l.File
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("layer %s: %w", name, err)
	}
	lim := r.VM.Limits()
	if lim.LayerFolders {
		return fmt.Errorf("layer %s: it holds no %s, and in a user namespace no disk can be mounted: "+
			"import it with the format dir: %w", name, layerTree, err)
	}
	if !lim.EROFS && l.File == "" {
		if _, serr := r.names.Stat(hostpath.Join(l.Folder, layerEROFS)); serr == nil {
			return fmt.Errorf("layer %s: it holds %s, which this machine cannot mount; import the layer as %s: %w",
				l.Folder, layerEROFS, layerVHD, err)
		}
	}
	lacks := hostpath.Base(path)
	if lim.EROFS && l.File == "" {
		lacks = layerEROFS + " or " + layerVHD
	}
	return fmt.Errorf("layer %s: it holds no %s; import the layer first: %w", name, lacks, err)
}

// checks reports whether the machine verifies layers with dm-verity.
func (r *Request) checks() bool { return r.VM != nil && r.VM.Limits().Verity }

func unchecked(layer string) error {
	return fmt.Errorf("layer %s has a hash tree: %w; import it without one, or mount it in a VM whose guest checks it",
		layer, ErrUnchecked)
}

// checkTree refuses a tree whose files have other owners now than when it was created. Machines cannot verify a
// directory tree with dm-verity.
func (r *Request) checkTree(l Layer, resolved string) error {
	folder := l.folder()
	switch {
	case l.Verity != nil && !r.AllowUnchecked:
		return unchecked(l.Folder + l.File)
	case folder == "":
		return fmt.Errorf("%w: layer %s: the owners of its files are recorded beside %s: give the layer's folder",
			ErrInvalid, resolved, layerTree)
	}
	return layerdir.CheckTree(folder)
}

// findVerity adds the root digest that was recorded when the layer was created with a hash tree, so that the guest
// verifies what it reads. The record is next to the image, or to the target of a link to it. Without a record, a
// machine with dm-verity uses the hash tree in the image, if there is one; others mount the image without it.
func (r *Request) findVerity(img *image, path string) error {
	if !r.checks() && r.AllowUnchecked {
		img.layer.Verity = nil
		return nil
	}
	if img.layer.Verity != nil {
		return nil
	}
	info, err := layerdir.ReadVerityOf(path)
	if errors.Is(err, fs.ErrNotExist) && img.path != path {
		info, err = layerdir.ReadVerityOf(img.path)
	}
	if errors.Is(err, fs.ErrNotExist) && r.checks() && img.layer.Partition == 0 {
		info, err = layerdir.VerityInImage(img.path)
	}
	switch name := img.layer.Folder + img.layer.File; {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("layer %s: %w", name, err)
	case !r.checks():
		return unchecked(name)
	case img.layer.Partition != 0:
		return fmt.Errorf("%w: layer %s: the recorded hash tree is that of the whole image, not of partition %d: "+
			"give the partition's own (Layer.Verity)", ErrInvalid, name, img.layer.Partition)
	}
	img.layer.Verity = &vmm.Verity{DataBytes: info.DataBytes, RootDigest: info.RootDigest, Salt: info.Salt,
		Algorithm: info.Algorithm, BlockSize: verity.BlockSize, SuperBlock: true}
	return nil
}

// scratchDisk returns the path of the writable disk, the file itself or sandbox.vhdx in the folder, with links
// resolved, so that containers that share a disk share the attachment.
func (r *Request) scratchDisk() (string, error) {
	path := r.Scratch
	info, err := r.names.Stat(path)
	if err == nil && info.IsDir() || err != nil && !errors.Is(err, fs.ErrNotExist) {
		path = hostpath.Join(path, sandboxVHDX)
	}
	return r.writableDisk("scratch", path)
}

// writableDisk checks that path is a disk image and resolves links.
func (r *Request) writableDisk(what, path string) (string, error) {
	info, err := r.names.Stat(path)
	if err != nil {
		return "", fmt.Errorf("%s %s: create it first: %w", what, path, err)
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%w: %s %s is no disk image", ErrInvalid, what, path)
	}
	if info.Size() == 0 {
		return "", fmt.Errorf("%w: %s %s is empty; create it again", ErrInvalid, what, path)
	}
	resolved, err := r.names.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", what, path, err)
	}
	return resolved, nil
}

// scratchFolder returns the scratch folder with links resolved if it does not contain a disk; else "".
func (r *Request) scratchFolder() (string, error) {
	info, err := r.names.Stat(r.Scratch)
	if err != nil {
		return "", fmt.Errorf("scratch %s: create it first: %w", r.Scratch, err)
	}
	if !info.IsDir() {
		return "", nil
	}
	if _, err := r.names.Stat(hostpath.Join(r.Scratch, sandboxVHDX)); !errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return r.names.EvalSymlinks(r.Scratch)
}
