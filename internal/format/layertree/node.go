package layertree

import (
	"slices"
	"strings"
)

// BlockSize is the unit in which contents are placed, in bytes.
const BlockSize = 4096

// File types and the bits of permissions, as in st_mode.
const (
	TypeMask    = 0o170000
	TypeSocket  = 0o140000
	TypeSymlink = 0o120000
	TypeRegular = 0o100000
	TypeBlock   = 0o060000
	TypeDir     = 0o040000
	TypeChar    = 0o020000
	TypeFifo    = 0o010000
	PermMask    = 0o7777
)

// OpaqueXattr is the attribute that makes a directory hide what is below it, with the value "y".
const OpaqueXattr = "trusted.overlay.opaque"

// Xattr is an extended attribute by its full name. POSIX ACLs are in the form that getxattr gives.
type Xattr struct {
	Name  string
	Value string
}

// Run is a part of a file's content: Blocks blocks from block File of the file on lie from block Start
// of the image on. What no run covers is zero.
type Run struct {
	File   uint32
	Start  uint32
	Blocks uint32
}

// Node is a file of any type. Hard links are several names for one Node.
type Node struct {
	Mode         uint32 // type and permissions, as in st_mode
	UID, GID     uint32
	Nlink        uint32 // names of a file; of a directory 2 and its subdirectories
	Sec          int64  // modification time, seconds since 1970
	Nsec         uint32
	Major, Minor uint32  // of devices
	Target       string  // of symbolic links
	Xattrs       []Xattr // sorted by name
	Size         int64   // of regular files
	Runs         []Run   // of regular files, in order
	Tail         []byte  // content after the last whole block, if it is not in Runs; only of images that were read
	// Implied: the layer has no entry for this directory, only entries in it. Its attributes are defaults, over which
	// those of the directory below take precedence.
	Implied bool

	children map[string]*Node
	hidden   map[string]struct{} // whiteouts for names of this directory
	opaque   bool
}

// Type is the file type, such as TypeDir.
func (n *Node) Type() uint32 { return n.Mode & TypeMask }

// IsDir reports whether n is a directory.
func (n *Node) IsDir() bool { return n.Type() == TypeDir }

// IsWhiteout reports whether n hides the name it has from the layers below.
func (n *Node) IsWhiteout() bool { return n.Type() == TypeChar && n.Major == 0 && n.Minor == 0 }

// IsOpaque reports whether n is a directory that hides what is below it.
func (n *Node) IsOpaque() bool {
	v, ok := n.Xattr(OpaqueXattr)
	return n.IsDir() && ok && v == "y"
}

// Xattr returns the value of an attribute.
func (n *Node) Xattr(name string) (string, bool) {
	if i, ok := slices.BinarySearchFunc(n.Xattrs, name, compareXattr); ok {
		return n.Xattrs[i].Value, true
	}
	return "", false
}

// SetXattr sets an attribute.
func (n *Node) SetXattr(name, value string) {
	i, ok := slices.BinarySearchFunc(n.Xattrs, name, compareXattr)
	if !ok {
		n.Xattrs = slices.Insert(n.Xattrs, i, Xattr{Name: name})
	}
	n.Xattrs[i].Value = value
}

// DeleteXattr removes an attribute, if it is there.
func (n *Node) DeleteXattr(name string) {
	if i, ok := slices.BinarySearchFunc(n.Xattrs, name, compareXattr); ok {
		n.Xattrs = slices.Delete(n.Xattrs, i, i+1)
	}
}

func compareXattr(x Xattr, name string) int { return strings.Compare(x.Name, name) }

// Child returns the entry of a directory, or nil.
func (n *Node) Child(name string) *Node { return n.children[name] }

// Len is the number of entries of a directory.
func (n *Node) Len() int { return len(n.children) }

// Names returns the names of a directory in byte order.
func (n *Node) Names() []string {
	names := make([]string, 0, len(n.children))
	for name := range n.children {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// SetChild sets an entry of the directory n, replaces an existing one, and updates the link counts of all three nodes.
// A directory must not be added twice.
func (n *Node) SetChild(name string, c *Node) {
	n.RemoveChild(name)
	if n.children == nil {
		n.children = make(map[string]*Node)
	}
	n.children[name] = c
	if c.IsDir() {
		n.Nlink++
	} else {
		c.Nlink++
	}
}

// RemoveChild removes an entry of the directory n, with all entries below it.
func (n *Node) RemoveChild(name string) {
	c := n.children[name]
	if c == nil {
		return
	}
	delete(n.children, name)
	if !c.IsDir() {
		c.Nlink--
		return
	}
	n.Nlink--
	// Update the link counts of files below. Not recursive, because trees can be deep.
	for stack := []*Node{c}; len(stack) > 0; {
		d := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, cc := range d.children {
			if cc.IsDir() {
				stack = append(stack, cc)
			} else {
				cc.Nlink--
			}
		}
	}
}

// NewDir creates an empty directory.
func NewDir(perm uint32) *Node { return &Node{Mode: TypeDir | perm&PermMask, Nlink: 2} }

// Tree is a layer.
type Tree struct {
	Root *Node
	// NextBlock is the first block of the image after the contents.
	NextBlock uint32
	// HasImplied: directories below the root are, or were, [Node.Implied].
	HasImplied bool
	// HasWhiteouts: the layer's tar had whiteouts, which may have to be removed if there is nothing below them.
	HasWhiteouts bool
}

// Walk calls f for each node once, with its first path, such as "/usr/bin": the root first, parents before children,
// entries in byte order. It stops at the first error.
func (t *Tree) Walk(f func(path string, n *Node) error) error {
	seen := make(map[*Node]struct{})
	type item struct {
		path string
		node *Node
	}
	stack := []item{{"/", t.Root}}
	for len(stack) > 0 {
		it := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if it.node.Nlink > 1 && !it.node.IsDir() {
			if _, again := seen[it.node]; again {
				continue
			}
			seen[it.node] = struct{}{}
		}
		if err := f(it.path, it.node); err != nil {
			return err
		}
		if !it.node.IsDir() {
			continue
		}
		names := it.node.Names()
		prefix := it.path
		if prefix != "/" {
			prefix += "/"
		}
		for i := len(names) - 1; i >= 0; i-- {
			stack = append(stack, item{prefix + names[i], it.node.children[names[i]]})
		}
	}
	return nil
}
