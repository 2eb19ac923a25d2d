package layerdir

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/stratavm/strata/internal/format/layertree"
	"github.com/stratavm/strata/internal/regfile"
)

// ErrNeedsBelow says that a layer has a hard link to a file of a layer below it: it can be converted only if the
// layers below are given, see [Options.Below].
var ErrNeedsBelow = layertree.ErrLink

// Below are the layers below the one that is converted. They are read only if needed, which is rare. A Below must not
// be used concurrently.
type Below struct {
	layers []belowLayer // base first
	left   int64        // remaining memory for outlines, in bytes
}

type belowLayer struct {
	file    string // the layer file, or the directory of a tree
	outline string
	tree    *layertree.Tree
}

// Add adds a layer on top: its file, or the directory of its tree, and the path of the outline that Convert wrote.
func (b *Below) Add(file, outline string) {
	if b.layers == nil {
		b.left = layertree.DefaultMaxMemory
	}
	b.layers = append(b.layers, belowLayer{file: file, outline: outline})
}

// Changes reports whether a layer that was converted without knowing the layers below would be different if converted
// over b. outline is the layer's outline. If an outline of b is missing, the error matches fs.ErrNotExist.
func (b *Below) Changes(outline string) (bool, error) {
	f, _, err := regfile.Open(outline)
	if err != nil {
		return false, err
	}
	defer f.Close() // it was only read
	asks, err := layertree.OutlineAsks(f, len(b.layers) == 0)
	if err != nil || !asks {
		return false, outlineError(outline, err)
	}
	below, err := b.load()
	if err != nil {
		return false, err
	}
	left := int64(layertree.DefaultMaxMemory)
	tree, err := readOutline(outline, &left)
	if err != nil {
		return false, err
	}
	changed, err := tree.Follow(below)
	return changed, outlineError(outline, err)
}

func outlineError(path string, err error) error {
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return err
}

// load reads the outlines that have not been read yet.
func (b *Below) load() (*layertree.Below, error) {
	if b == nil {
		return nil, nil
	}
	out := &layertree.Below{Layers: make([]layertree.Lower, len(b.layers))}
	for i := range b.layers {
		l := &b.layers[i]
		if l.tree == nil {
			var err error
			if l.tree, err = readOutline(l.outline, &b.left); err != nil {
				return nil, err
			}
		}
		out.Layers[len(b.layers)-1-i] = layertree.Lower{Tree: l.tree, Open: l.open}
	}
	return out, nil
}

func readOutline(path string, left *int64) (*layertree.Tree, error) {
	f, _, err := regfile.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // it was only read
	tree, err := layertree.ReadOutline(bufio.NewReader(f), left)
	return tree, outlineError(path, err)
}

// open opens a file of the layer.
func (l *belowLayer) open(path string, n *layertree.Node) (io.ReadCloser, error) {
	if filepath.Base(l.file) == Tree.FileName() {
		root, err := os.OpenRoot(l.file)
		if err != nil {
			return nil, err
		}
		f, err := root.Open(path)
		return f, errors.Join(err, root.Close())
	}
	f, size, err := regfile.Open(l.file)
	if err != nil {
		return nil, err
	}
	return &content{f: f, size: size, node: n}, nil
}

// content reads the contents of a file from the layer file.
type content struct {
	f    *os.File
	size int64 // of the layer file
	node *layertree.Node
	at   int64
}

func (c *content) Close() error { return c.f.Close() }

func (c *content) Read(b []byte) (int, error) {
	left := c.node.Size - c.at
	if left <= 0 {
		return 0, io.EOF
	}
	b = b[:min(int64(len(b)), left)]
	block := uint32(c.at / layertree.BlockSize)
	for _, r := range c.node.Runs {
		if r.File > block { // a hole before this run
			left = min(left, int64(r.File)*layertree.BlockSize-c.at)
			break
		}
		if block-r.File >= r.Blocks {
			continue
		}
		end := (int64(r.File) + int64(r.Blocks)) * layertree.BlockSize
		b = b[:min(int64(len(b)), end-c.at)]
		from := (int64(r.Start)-int64(r.File))*layertree.BlockSize + c.at
		if from < 0 || from+int64(len(b)) > c.size {
			return 0, fmt.Errorf("its contents lie outside of the layer: %w", layertree.ErrOutline)
		}
		n, err := c.f.ReadAt(b, from)
		if c.at += int64(n); n > 0 {
			err = nil
		}
		return n, err
	}
	b = b[:min(int64(len(b)), left)]
	clear(b)
	c.at += int64(len(b))
	return len(b), nil
}
