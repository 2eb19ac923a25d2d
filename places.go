package strata

import (
	"context"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/format/erofs"
	"github.com/stratavm/strata/internal/format/layertree"
	"github.com/stratavm/strata/internal/ocispec"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/layerdir"
)

// ErrPlace is matched by errors about a mount whose destination the image does not allow.
var ErrPlace = ocispec.ErrPlace

// CheckPlaces returns an error matching ErrPlace for a mount of the document with which the container could not start:
// a directory over a file of the image or the reverse, below a file, or where symbolic links of the image lead into
// /proc, /sys or /dev. layers are layer folders, topmost first. If one of them is not an uncompressed EROFS layer,
// nothing is checked, and the start of the container reports such mounts. If ctx ends, the error is its cause.
func CheckPlaces(ctx context.Context, s *specs.Spec, layers []string) error {
	if s == nil {
		return nil
	}
	files, err := openImageLayers(layers)
	defer files.close()
	if err != nil {
		return nil // mounting the layer reports it
	}
	inMount := func(specs.Mount, string) (string, error) { return "", nil } // not known
	err = ocispec.CheckPlaces(s.Mounts, &imageFiles{ctx, files, map[string]*layertree.Node{}}, inMount)
	if ctx.Err() != nil { // err may come from files that were not looked up
		return context.Cause(ctx)
	}
	return err
}

// imageLayers are EROFS layers, topmost first.
type imageLayers []imageLayer

type imageLayer struct {
	file *os.File
	*erofs.Reader
}

func openImageLayers(layers []string) (files imageLayers, err error) {
	for _, dir := range layers {
		f, size, err := regfile.Open(filepath.Join(dir, layerdir.EROFS.FileName()))
		if err != nil {
			return files, err
		}
		r, err := erofs.NewReader(f, size)
		files = append(files, imageLayer{f, r})
		if err != nil {
			return files, err
		}
	}
	return files, nil
}

func (l imageLayers) close() {
	for _, one := range l {
		one.file.Close() // it was only read
	}
}

// imageFiles is the merged view of layers, for one call of CheckPlaces.
type imageFiles struct {
	ctx    context.Context // of the call
	layers imageLayers
	seen   map[string]*layertree.Node // by path; nil: the path does not exist
}

const (
	// maxSeen bounds imageFiles.seen.
	maxSeen = 4096
	// maxSeenPath is PATH_MAX of Linux.
	maxSeenPath = 4096
)

// Link implements ocispec.RootFiles. A path that cannot be read counts as no link.
func (f *imageFiles) Link(at string) (string, error) {
	n, err := f.find(at)
	if err != nil || n.Type() != layertree.TypeSymlink {
		return "", nil
	}
	return n.Target, nil
}

// Folder implements ocispec.RootFiles.
func (f *imageFiles) Folder(at string) (bool, error) {
	n, err := f.find(at)
	return err == nil && n.IsDir(), err
}

func (f *imageFiles) find(at string) (n *layertree.Node, err error) {
	n, known := f.seen[at]
	if !known {
		if n, err = f.read(at); err != nil {
			return nil, err
		}
		if len(f.seen) >= maxSeen {
			clear(f.seen)
		}
		f.seen[at] = n
	}
	if n == nil {
		return nil, &fs.PathError{Op: "find", Path: at, Err: fs.ErrNotExist}
	}
	return n, nil
}

// read looks a path up in the layers, down to the first that hides those below it. It returns nil if there is nothing.
func (f *imageFiles) read(at string) (*layertree.Node, error) {
	if len(at) > maxSeenPath {
		return nil, &fs.PathError{Op: "find", Path: at, Err: syscall.ENAMETOOLONG}
	}
	if up, known := f.seen[path.Dir(at)]; known && (up == nil || !up.IsDir()) {
		return nil, nil
	}
	var layers layertree.Below
	for _, l := range f.layers {
		if f.ctx.Err() != nil {
			return nil, context.Cause(f.ctx)
		}
		tree, err := l.Along(at)
		if err != nil {
			return nil, err
		}
		layers.Layers = append(layers.Layers, layertree.Lower{Tree: tree})
		if tree.Decides(at) {
			break
		}
	}
	return layers.Seen(at), nil
}
