package layertree

import (
	"fmt"
	"strings"
)

// whiteout records the whiteout entry ".wh."+name of a directory.
func (rd *reader) whiteout(dir *Node, name string) error {
	if name == ".wh..opq" {
		dir.opaque = true
		rd.whited = append(rd.whited, dir)
		return nil
	}
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("a whiteout of nothing: %w", ErrInvalid)
	}
	if strings.HasPrefix(name, ".wh.") {
		return nil // ".wh..wh.plnk" and the like: bookkeeping of aufs without a meaning here
	}
	if dir.hidden == nil {
		dir.hidden = make(map[string]struct{})
		rd.whited = append(rd.whited, dir)
	}
	dir.hidden[name] = struct{}{}
	return nil
}

// whiteouts converts the whiteouts to overlayfs's format, once all entries were read.
func (rd *reader) whiteouts() {
	bare := bareness{}
	for _, d := range rd.whited {
		for name := range d.hidden {
			switch c := d.Child(name); {
			case c == nil || bare.of(c):
				d.SetChild(name, &Node{Mode: TypeChar})
			case c.IsDir():
				c.SetXattr(OpaqueXattr, "y")
				c.Implied = false // another directory than the one below
			}
		}
	}
	for _, d := range rd.whited {
		if d.opaque {
			d.SetXattr(OpaqueXattr, "y")
		}
		d.hidden, d.opaque = nil, false
	}
	for _, d := range rd.whited {
		d.dropWhiteouts(bare)
		for _, c := range d.children {
			c.dropWhiteouts(bare)
		}
	}
	for _, d := range rd.whited {
		for _, c := range d.children {
			rd.tree.HasWhiteouts = rd.tree.HasWhiteouts || c.IsWhiteout()
		}
	}
}

// dropWhiteouts removes the whiteouts below an opaque directory, and directories that contain nothing else: they hide
// nothing, and overlayfs would list their names. It does nothing for other directories.
func (n *Node) dropWhiteouts(bare bareness) {
	if !n.IsDir() || !n.IsOpaque() {
		return
	}
	stack := []*Node{n}
	for len(stack) > 0 {
		d := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for name, c := range d.children {
			switch {
			case c.IsWhiteout() || bare.of(c):
				d.RemoveChild(name)
			case c.IsDir() && !c.IsOpaque(): // an opaque one is looked at by itself
				stack = append(stack, c)
			}
		}
	}
}

// bareness caches which directories are bare: implied, with nothing in them but whiteouts and bare directories.
type bareness map[*Node]bool

// of reports whether n is a bare directory.
func (b bareness) of(n *Node) bool {
	if !n.IsDir() || !n.Implied {
		return false
	}
	is, known := b[n]
	if known {
		return is
	}
	is = true
	for _, c := range n.children {
		if is = c.IsWhiteout() || b.of(c); !is {
			break
		}
	}
	b[n] = is
	return is
}
