package layerdir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/stratavm/strata/internal/format/erofs"
	"github.com/stratavm/strata/internal/format/gpt"
	"github.com/stratavm/strata/internal/format/vhd"
	"github.com/stratavm/strata/internal/regfile"
)

// Extent is a range of bytes of a disk that is composed of files. It is convertible to vmm.Extent; this package does
// not depend on machines.
type Extent struct {
	Path   string // empty: zeroes
	Offset int64  // in the file
	Length int64
}

// layerFile is an open layer file with the size of its contents without a VHD footer.
type layerFile struct {
	*os.File
	size int64
}

func openLayers(paths []string) (files []layerFile, closeAll func(), err error) {
	closeAll = func() {
		for _, f := range files {
			f.Close() // opened read-only: nothing can be lost
		}
	}
	for _, path := range paths {
		f, size, err := regfile.Open(path)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		files = append(files, layerFile{File: f})
		if filepath.Ext(path) == ".vhd" {
			footer, err := vhd.Validate(f, size)
			if err != nil {
				closeAll()
				return nil, nil, fmt.Errorf("%s: %w", path, err)
			}
			size = footer.Size
		}
		files[len(files)-1].size = size
	}
	return files, closeAll, nil
}

// IndexDisk creates an index of EROFS layer files, top layer first, in the new file index, and returns the extents of
// a read-only disk that shows all of them as one EROFS file system. The index is for one mount: remove the file after
// it. If layers cannot be indexed (ext4, compressed images), the error matches erofs.ErrNotEROFS, erofs.ErrUnsupported
// or erofs.ErrTooLarge, and no file is left: use PartitionDisk, or one disk per layer.
func IndexDisk(index string, layers []string) (disk []Extent, err error) {
	wrap := func(err error) error {
		return fmt.Errorf("index %d layers in %s: %w", len(layers), index, explain(err))
	}
	files, closeAll, err := openLayers(layers)
	if err != nil {
		return nil, wrap(err)
	}
	defer closeAll()
	in := make([]erofs.IndexLayer, len(files))
	for i, f := range files {
		in[i] = erofs.IndexLayer{Image: f, Bytes: f.size}
	}
	var pieces []erofs.Piece
	err = writeNew(index, func(w *os.File) (err error) {
		pieces, err = erofs.Index(w, in)
		return err
	})
	if err != nil {
		return nil, wrap(err)
	}
	for _, p := range pieces {
		path := index
		if p.Layer >= 0 {
			path = layers[p.Layer]
		}
		disk = append(disk, Extent{Path: path, Offset: p.Offset, Length: p.Length})
	}
	return disk, nil
}

// PartitionDisk writes a partition table for layer files of any format to the new file table, and returns the extents
// of a read-only disk whose partition i+1 is layer i.
func PartitionDisk(table string, layers []string) (disk []Extent, err error) {
	wrap := func(err error) error {
		return fmt.Errorf("partition table for %d layers in %s: %w", len(layers), table, explain(err))
	}
	files, closeAll, err := openLayers(layers)
	if err != nil {
		return nil, wrap(err)
	}
	defer closeAll()
	names, sizes := make([]string, len(files)), make([]int64, len(files))
	for i, f := range files {
		names[i], sizes[i] = fmt.Sprintf("layer %d", i), f.size
	}
	plan, err := gpt.Plan(names, sizes)
	if err != nil {
		return nil, wrap(err)
	}
	err = writeNew(table, func(w *os.File) error {
		_, err := w.Write(append(plan.Head, plan.Tail...))
		return err
	})
	if err != nil {
		return nil, wrap(err)
	}
	head, tail := int64(len(plan.Head)), int64(len(plan.Tail))
	disk = append(disk, Extent{Path: table, Length: head})
	for i, p := range plan.Partitions {
		disk = append(disk, Extent{Path: layers[i], Length: sizes[i]})
		if rest := p.Size - sizes[i]; rest > 0 {
			disk = append(disk, Extent{Length: rest})
		}
	}
	return append(disk, Extent{Path: table, Offset: head, Length: tail}), nil
}

// writeNew writes a file that must not exist, and removes it on failure. It is not synced, as it is needed only as
// long as a mount.
func writeNew(path string, write func(*os.File) error) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
