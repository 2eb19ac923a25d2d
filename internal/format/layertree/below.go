package layertree

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// Below are the layers below a layer, topmost first.
type Below struct {
	Layers []Lower
}

// Lower is a layer under another one.
type Lower struct {
	Tree *Tree
	// Open opens the content of a regular file of the tree by its slash-separated path, which has no symbolic links.
	Open func(path string, n *Node) (io.ReadCloser, error)
}

// lowNode is the merged view of a path in the layers of a Below: a directory with its parts in several layers, topmost
// first; one part of another type; or nothing.
type lowNode []lowPart

type lowPart struct {
	layer int
	node  *Node
}

func (b *Below) root() lowNode {
	var out lowNode
	for i, l := range b.Layers {
		out = append(out, lowPart{i, l.Tree.Root})
		if l.Tree.Root.IsOpaque() {
			break
		}
	}
	return out
}

// is reports whether l exists and has a type.
func (l lowNode) is(typ uint32) bool { return len(l) > 0 && l[0].node.Type() == typ }

// child returns the entry name of the directory l, as overlayfs merges it.
func (l lowNode) child(name string) lowNode {
	if !l.is(TypeDir) {
		return nil
	}
	var out lowNode
	for _, p := range l {
		c := p.node.Child(name)
		switch {
		case c == nil:
			continue
		case c.IsWhiteout():
			return out
		case !c.IsDir():
			if len(out) == 0 {
				out = lowNode{{p.layer, c}}
			}
			return out
		}
		if out = append(out, lowPart{p.layer, c}); c.IsOpaque() {
			return out
		}
	}
	return out
}

// Seen returns the visible node at a slash-separated path, without following symbolic links, or nil.
func (b *Below) Seen(path string) *Node {
	at := b.root()
	for name := range strings.SplitSeq(path, "/") {
		if name != "" {
			at = at.child(name)
		}
	}
	if len(at) == 0 {
		return nil
	}
	return at[0].node
}

// Decides reports whether t alone determines what is visible at a slash-separated path: it exists in t, or a component
// in t hides the layers below.
func (t *Tree) Decides(path string) bool {
	n := t.Root
	for name := range strings.SplitSeq(path, "/") {
		if name == "" {
			continue
		}
		if !n.IsDir() || n.IsOpaque() {
			return true
		}
		if n = n.Child(name); n == nil {
			return false
		}
	}
	return true
}

// inheritBelow copies the attributes of the directory low to n, which has no entry of its own.
func (n *Node) inheritBelow(low lowNode) {
	for _, p := range low {
		if p.node.Implied {
			continue
		}
		opaque := n.IsOpaque()
		n.update(p.node)
		n.Xattrs = slices.Clone(n.Xattrs)
		n.DeleteXattr(OpaqueXattr)
		if opaque {
			n.SetXattr(OpaqueXattr, "y")
		}
		n.Implied = true
		return
	}
}

// step is a directory on the path from the root: the layer's own node, which may be nil, and the layers below.
type step struct {
	up   *step
	name string
	own  *Node
	low  lowNode
}

func (s *step) child(name string) *Node {
	if s.own == nil {
		return nil
	}
	return s.own.Child(name)
}

// below returns the visible entry of the layers below under a name.
func (s *step) below(name string) lowNode {
	if s.own != nil && s.own.IsOpaque() {
		return nil
	}
	return s.low.child(name)
}

// follower follows symbolic links of the layers below for a layer over them.
type follower struct {
	tree    *Tree
	changed bool
	made    int // directories created
	work    int // names looked up
	bare    bareness
	put     func(dir *Node, name string, n *Node)
}

// maxFollowWork bounds the number of names looked up to follow links, for which a small hostile layer could need very
// many.
const maxFollowWork = 50_000_000

// Follow applies to a layer that was converted alone what depends on the layers below:
//
//   - A directory without an entry of its own, over a symbolic link, is removed and its entries are moved to the link's
//     target, as when layers are unpacked over one another.
//   - Such a directory that contains only whiteouts, over nothing, is removed.
//   - Such a directory over another directory gets that one's attributes.
//   - Whiteouts in a directory that no layer below has are removed: overlayfs would list their names.
//
// It reports whether it changed the layer other than by the third rule.
func (t *Tree) Follow(b *Below) (changed bool, err error) {
	root := b.root()
	if t.Root.Implied {
		t.Root.inheritBelow(root)
	}
	if !t.HasImplied && !t.HasWhiteouts {
		return false, nil
	}
	f := follower{tree: t, bare: bareness{}, put: (*Node).SetChild}
	for stack := []*step{{own: t.Root, low: root}}; len(stack) > 0; {
		here := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, name := range here.own.Names() {
			c := here.own.Child(name)
			if c != nil && t.HasWhiteouts && c.IsWhiteout() && !here.low.is(TypeDir) {
				here.own.RemoveChild(name)
				f.changed = true
				continue
			}
			if c == nil || !c.IsDir() {
				continue
			}
			low := here.below(name)
			if c.Implied {
				to, gone, err := f.settle(here, name, c, low)
				if err != nil {
					return f.changed, fmt.Errorf("%s: %w", quote(name), err)
				}
				if to != nil {
					stack = append(stack, to) // it has new entries
				}
				if gone {
					continue
				}
			}
			stack = append(stack, &step{here, name, c, low})
		}
	}
	return f.changed, nil
}

// settle applies Follow's rules to the directory c, which has no entry of its own. gone reports whether c was removed;
// its entries may be in the directory to then.
func (f *follower) settle(here *step, name string, c *Node, low lowNode) (to *step, gone bool, err error) {
	switch {
	case low.is(TypeSymlink):
		to, err := f.walk(here, low[0].node.Target)
		if to == nil || err != nil {
			return nil, false, err // a loop, or a file on the way: c hides the link
		}
		for s := to; s != nil; s = s.up {
			if s.own == c {
				return nil, false, nil // the link leads into c itself
			}
		}
		if err := f.create(to); err != nil {
			return nil, false, err
		}
		delete(here.own.children, name)
		here.own.Nlink--
		merge(to.own, c)
		f.changed, f.bare = true, bareness{}
		return to, true, nil
	case low.is(TypeDir):
		c.inheritBelow(low)
	case f.bare.of(c):
		here.own.RemoveChild(name)
		f.changed = true
		return nil, true, nil
	}
	return nil, false, nil
}

// walk resolves a path from a directory, through symbolic links of the layer and those below. It creates nothing. The
// result is nil if the path does not lead to a directory.
func (f *follower) walk(at *step, way string) (*step, error) {
	root := at
	for root.up != nil {
		root = root.up
	}
	if strings.HasPrefix(way, "/") {
		at = root
	}
	rest := strings.Split(way, "/")
	for followed := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		if f.work++; f.work > maxFollowWork {
			return nil, fmt.Errorf("the ways through symbolic links of the layers below are too long: %w", ErrTooLarge)
		}
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			if at.up != nil {
				at = at.up
			}
			continue
		case len(part) > maxName:
			return nil, nil
		}
		own, low := at.child(part), at.below(part)
		if own != nil && own.IsWhiteout() {
			low = nil
		}
		var target string
		switch {
		case own != nil && own.Type() == TypeSymlink:
			target = own.Target
		case (own == nil || own.Implied) && low.is(TypeSymlink):
			target = low[0].node.Target
		case own != nil && !own.IsDir() && !own.IsWhiteout(), own == nil && len(low) > 0 && !low.is(TypeDir):
			return nil, nil
		default:
			at = &step{at, part, own, low}
			continue
		}
		if followed++; followed > maxSymlinks {
			return nil, nil
		}
		if strings.HasPrefix(target, "/") {
			at = root
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, nil
}

// create creates the directories of a path that the layer itself does not have.
func (f *follower) create(s *step) error {
	var missing []*step
	for ; s.own == nil || s.own.IsWhiteout(); s = s.up {
		missing = append(missing, s)
	}
	if f.made += len(missing); f.made > DefaultMaxEntries {
		return fmt.Errorf("more than %d directories behind symbolic links: %w", DefaultMaxEntries, ErrTooLarge)
	}
	for _, m := range slices.Backward(missing) {
		hidden := m.own != nil
		m.own = f.tree.implied()
		if hidden {
			m.own.SetXattr(OpaqueXattr, "y")
			m.own.Implied, m.low = false, nil
		} else {
			m.own.inheritBelow(m.low)
		}
		f.put(m.up.own, m.name, m.own)
	}
	return nil
}

// implied returns a new directory without an entry of its own.
func (t *Tree) implied() *Node {
	t.HasImplied = true
	d := NewDir(0o755)
	d.Implied = true
	return d
}

// merge moves the entries of the removed directory from to another one, in which existing entries are kept.
func merge(to, from *Node) {
	type pair struct{ to, from *Node }
	for stack := []pair{{to, from}}; len(stack) > 0; {
		p := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if p.from.IsOpaque() {
			p.to.SetXattr(OpaqueXattr, "y")
		}
		for _, name := range p.from.Names() {
			c, old := p.from.Child(name), p.to.Child(name)
			switch {
			case old == nil:
				delete(p.from.children, name)
				p.to.adopt(name, c)
			case old.IsDir() && c.IsDir():
				if old.Implied && !c.Implied {
					old.update(c)
				}
				stack = append(stack, pair{old, c})
			default:
				p.from.RemoveChild(name)
			}
		}
	}
}
