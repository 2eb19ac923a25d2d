package erofs

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/stratavm/strata/internal/format/layertree"
)

// Reader finds files in an uncompressed image without reading all of it. It is not for concurrent use.
type Reader struct {
	super super
	r     *windows
}

// NewReader reads the super block of the image r of at most size bytes.
func NewReader(r io.ReaderAt, size int64) (*Reader, error) {
	s, err := readSuper(r, size)
	if err != nil {
		return nil, err
	}
	return &Reader{s, newWindows(r, int64(s.blocks)*blockSize)}, nil
}

// Along returns a tree with only the components of a slash-separated path, and reads nothing else of the image. The
// tree ends at the first component that does not exist or is not a directory.
func (r *Reader) Along(path string) (*layertree.Tree, error) {
	tree, err := newImage(r.super, r.r, newBudget(DefaultMaxMemory)).along(strings.Split(path, "/"))
	if err != nil {
		return nil, fmt.Errorf("erofs: %w", err)
	}
	return tree, nil
}

func (im *image) along(way []string) (*layertree.Tree, error) {
	at, err := im.top()
	if err != nil {
		return nil, err
	}
	tree := &layertree.Tree{Root: at.node, NextBlock: im.blocks}
	for _, name := range way {
		if name == "" {
			continue
		}
		ents, err := im.dirents(at)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(ents, func(e dirent) bool { return e.name == name })
		if i < 0 {
			break
		}
		next, err := im.inode(ents[i].nid)
		if err == nil && next.node.Type() == layertree.TypeSymlink {
			err = im.contents(next)
		}
		if err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
		at.node.SetChild(name, next.node)
		if at = next; !at.node.IsDir() {
			break
		}
	}
	return tree, nil
}
