package erofs

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/stratavm/strata/internal/format/layertree"
)

// IndexLayer is an image that an index refers to.
type IndexLayer struct {
	Image io.ReaderAt
	Bytes int64 // size of the file; what follows the image in it, such as a hash tree, is ignored
}

// Piece is a part of the disk that an index describes.
type Piece struct {
	Layer  int   // index of a layer, or -1 for the index itself
	Offset int64 // in that file
	Length int64 // a multiple of 4096
}

// Index writes the metadata of one file system with the merged content of layers, topmost first, as overlayfs would
// show it, except for directories without an entry of their own (see the package). It contains no file contents, which
// stay in the layers. The disk to mount consists of the returned pieces in order: the first block of what was written
// to w, each layer, and the rest of what was written. It is an ordinary EROFS image on a single device; whiteouts and
// opaque directories are resolved.
//
// An index is created for one mount and deleted with it; layers are never changed.
func Index(w io.WriteSeeker, layers []IndexLayer) ([]Piece, error) {
	if len(layers) == 0 {
		return nil, fmt.Errorf("erofs: an index needs at least one layer")
	}
	pieces := []Piece{{Layer: -1, Length: blockSize}}
	next := int64(1)
	var merged *layertree.Tree
	trees, err := openAll(layers)
	if err != nil {
		return nil, err
	}
	// From the base up.
	for i := len(layers) - 1; i >= 0; i-- {
		tree := trees[i]
		length := int64(tree.NextBlock)
		if next+length > math.MaxUint32 {
			return nil, fmt.Errorf("erofs: layer %d: together the layers exceed 16 TiB: %w", i, ErrTooLarge)
		}
		below := &layertree.Below{}
		if merged != nil {
			below.Layers = []layertree.Lower{{Tree: merged}}
		}
		if _, err := tree.Follow(below); err != nil {
			return nil, fmt.Errorf("erofs: layer %d: %w: %w", i, ErrTooLarge, err)
		}
		tree.Shift(uint32(next))
		pieces = append(pieces, Piece{Layer: i, Length: length * blockSize})
		next += length
		if merged == nil {
			merged = tree
		} else {
			merged.Overlay(tree)
		}
	}
	merged.Resolve()
	if _, err := w.Seek(blockSize, io.SeekStart); err != nil {
		return nil, fmt.Errorf("erofs: %w", err)
	}
	bw := bufio.NewWriterSize(w, writeBuffer)
	block0, info, err := writeMetadata(bw, merged, uint32(next))
	if err != nil {
		return nil, fmt.Errorf("erofs: %w", err)
	}
	if err := bw.Flush(); err != nil {
		return nil, fmt.Errorf("erofs: %w", err)
	}
	if _, err := w.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("erofs: %w", err)
	}
	if _, err := w.Write(block0); err != nil {
		return nil, fmt.Errorf("erofs: %w", err)
	}
	return append(pieces, Piece{Layer: -1, Offset: blockSize, Length: info.Bytes - next*blockSize}), nil
}

// openAll reads the metadata of all layers concurrently, with a shared memory budget.
func openAll(layers []IndexLayer) ([]*layertree.Tree, error) {
	memory := newBudget(DefaultMaxMemory)
	trees := make([]*layertree.Tree, len(layers))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, l := range layers {
		g.Go(func() (err error) {
			if trees[i], err = open(l.Image, l.Bytes, memory); err != nil {
				return fmt.Errorf("layer %d: %w", i, err)
			}
			return nil
		})
	}
	return trees, g.Wait()
}
