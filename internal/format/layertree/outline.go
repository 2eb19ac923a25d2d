package layertree

import (
	"compress/gzip"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"strings"
)

// An outline is a layer without contents: names, attributes, and the location of the contents. It is stored with the
// layer for the conversion of layers above it.
type outlineHead struct {
	Version      int
	HasImplied   bool
	HasWhiteouts bool // always false where an earlier version has written it
}

type outlineEntry struct {
	Path string // slash-separated, without one at the beginning; the root is empty and first
	Same string // of a further name of a file: its first
	Node *Node  // otherwise
}

const outlineVersion = 1

// ErrOutline: an outline cannot be read.
var ErrOutline = errors.New("the outline of the layer is damaged, or of another version")

// writeOutline writes the outline of t.
func (t *Tree) writeOutline(w io.Writer) error {
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	enc := gob.NewEncoder(z)
	if err := enc.Encode(outlineHead{outlineVersion, t.HasImplied, t.HasWhiteouts}); err != nil {
		return err
	}
	if err := enc.Encode(outlineEntry{Node: t.Root}); err != nil {
		return err
	}
	type item struct {
		prefix string
		dir    *Node
	}
	first := map[*Node]string{}
	for stack := []item{{"", t.Root}}; len(stack) > 0; {
		it := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, name := range it.dir.Names() {
			c := it.dir.Child(name)
			e := outlineEntry{Path: it.prefix + name, Node: c}
			if c.IsDir() {
				stack = append(stack, item{e.Path + "/", c})
			} else if c.Nlink > 1 {
				if same, again := first[c]; again {
					e.Same, e.Node = same, nil
				} else {
					first[c] = e.Path
				}
			}
			if err := enc.Encode(e); err != nil {
				return err
			}
		}
	}
	return z.Close()
}

// OutlineAsks reports, by the beginning of an outline, whether the layer may need [Tree.Follow]: it has directories
// without entries of their own, or whiteouts. If there is nothing below the layer, only whiteouts count.
func OutlineAsks(r io.Reader, overNothing bool) (bool, error) {
	_, head, err := openOutline(r)
	return head.HasWhiteouts || head.HasImplied && !overNothing, err
}

func openOutline(r io.Reader) (*gob.Decoder, outlineHead, error) {
	var head outlineHead
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, head, fmt.Errorf("%w: %w", ErrOutline, err)
	}
	dec := gob.NewDecoder(io.LimitReader(z, DefaultMaxMemory))
	if err := dec.Decode(&head); err != nil {
		return nil, head, fmt.Errorf("%w: %w", ErrOutline, err)
	}
	if head.Version != outlineVersion {
		return nil, head, fmt.Errorf("%w: version %d", ErrOutline, head.Version)
	}
	return dec, head, nil
}

// DefaultMaxMemory is a memory limit for ReadOutline, for all layers of an image, in bytes.
const DefaultMaxMemory = 1 << 30

// ReadOutline reads an outline. It subtracts its memory, by a conservative estimate, from left.
func ReadOutline(r io.Reader, left *int64) (*Tree, error) {
	dec, head, err := openOutline(r)
	if err != nil {
		return nil, err
	}
	t := &Tree{HasImplied: head.HasImplied, HasWhiteouts: head.HasWhiteouts}
	dirs := map[string]*Node{}
	for {
		var e outlineEntry
		err := dec.Decode(&e)
		if err == io.EOF {
			break
		}
		if err == nil {
			err = t.addOutline(e, dirs, left)
		}
		if errors.Is(err, ErrTooLarge) {
			return nil, err
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrOutline, err)
		}
	}
	if t.Root == nil {
		return nil, fmt.Errorf("%w: it is empty", ErrOutline)
	}
	return t, nil
}

func (t *Tree) addOutline(e outlineEntry, dirs map[string]*Node, left *int64) error {
	const nodeCost, nameCost = 320, 64
	cost := int64(nodeCost + nameCost + 2*len(e.Path))
	if e.Node != nil {
		cost += int64(len(e.Node.Target) + len(e.Node.Runs)*runCost)
		for _, x := range e.Node.Xattrs {
			cost += int64(len(x.Name) + len(x.Value) + xattrCost)
		}
	}
	if *left -= cost; *left < 0 {
		return fmt.Errorf("the names of the layers below take more memory than is allowed: %w", ErrTooLarge)
	}
	n := e.Node
	if n != nil {
		n.Nlink = 0
		if n.IsDir() {
			n.Nlink = 2
		}
	}
	if e.Path == "" {
		if t.Root != nil || n == nil || !n.IsDir() {
			return errors.New("no root")
		}
		t.Root, dirs[""] = n, n
		return nil
	}
	dirName, base := "", e.Path
	if i := strings.LastIndexByte(e.Path, '/'); i >= 0 {
		dirName, base = e.Path[:i], e.Path[i+1:]
	}
	dir := dirs[dirName]
	if dir == nil || base == "" || base == "." || base == ".." || dir.Child(base) != nil {
		return fmt.Errorf("%s has no place", quote(e.Path))
	}
	if n == nil {
		if n = t.lookup(e.Same); n == nil || n.IsDir() {
			return fmt.Errorf("%s is another name of nothing", quote(e.Path))
		}
	}
	dir.SetChild(base, n)
	if n.IsDir() {
		dirs[e.Path] = n
	}
	return nil
}

// lookup returns a node by its path. It follows no symbolic links.
func (t *Tree) lookup(path string) *Node {
	n := t.Root
	for part := range strings.SplitSeq(path, "/") {
		if n = n.Child(part); n == nil {
			return nil
		}
	}
	return n
}
