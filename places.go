package strata

import (
	"io/fs"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/format/erofs"
	"github.com/stratavm/strata/internal/format/layertree"
	"github.com/stratavm/strata/internal/ocispec"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/layerdir"
)

// ErrPlace is matched by errors about a mount of a document at a place of the image where it cannot be.
var ErrPlace = ocispec.ErrPlace

// CheckPlaces refuses mounts of a document that the container could not be started with: a folder over a file of the
// image or the reverse, below a file, or where links of the image lead to what the system shows. Layers are folders,
// the top-most first. Where one of them is no EROFS layer, or compressed, nothing
// is known, and the container's start tells.
func CheckPlaces(s *specs.Spec, layers []string) error {
	if s == nil {
		return nil
	}
	files, err := openImageFiles(layers)
	defer files.close()
	if err != nil {
		return nil // who mounts it says so
	}
	inMount := func(specs.Mount, string) (string, error) { return "", nil } // not known
	return ocispec.CheckPlaces(s.Mounts, files, inMount)
}

// imageFiles are what EROFS layers show together, the top-most first.
type imageFiles []imageLayer

type imageLayer struct {
	file *os.File
	*erofs.Reader
}

func openImageFiles(layers []string) (files imageFiles, err error) {
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

func (f imageFiles) close() {
	for _, l := range f {
		l.file.Close() // it was only read
	}
}

// Link implements ocispec.RootFiles. What cannot be read is taken for no link.
func (f imageFiles) Link(path string) (string, error) {
	n, err := f.seen(path)
	if err != nil || n.Type() != layertree.TypeSymlink {
		return "", nil
	}
	return n.Target, nil
}

// Folder implements ocispec.RootFiles.
func (f imageFiles) Folder(path string) (bool, error) {
	n, err := f.seen(path)
	return err == nil && n.IsDir(), err
}

func (f imageFiles) seen(path string) (*layertree.Node, error) {
	layers := &layertree.Below{}
	for _, l := range f {
		tree, err := l.Along(path)
		if err != nil {
			return nil, err
		}
		layers.Layers = append(layers.Layers, layertree.Lower{Tree: tree})
	}
	n := layers.Seen(path)
	if n == nil {
		return nil, &fs.PathError{Op: "find", Path: path, Err: fs.ErrNotExist}
	}
	return n, nil
}
