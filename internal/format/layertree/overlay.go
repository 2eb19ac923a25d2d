package layertree

// Overlay puts the layer upper over t: what overlayfs shows of the two, in t. Whiteouts take names
// away, opaque directories replace, directories merge and take the attributes of the upper one, unless
// these are made up (see [Node.Implied]), anything else replaces. Contents stay where they are: the runs
// of both must count blocks of the same image. upper must not be used afterwards: its nodes now belong to t.
func (t *Tree) Overlay(upper *Tree) {
	t.NextBlock = max(t.NextBlock, upper.NextBlock)
	type pair struct{ low, up *Node }
	if upper.Root.IsOpaque() {
		upper.Root.inherit(t.Root)
		t.Root = NewDir(0)
	}
	t.Root.overlay(upper.Root)
	t.Root.DeleteXattr(OpaqueXattr)
	stack := []pair{{t.Root, upper.Root}}
	for len(stack) > 0 {
		p := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for name, up := range p.up.children {
			low := p.low.children[name]
			switch {
			case up.IsWhiteout():
				p.low.RemoveChild(name)
			case low != nil && low.IsDir() && up.IsDir() && !up.IsOpaque():
				low.overlay(up)
				stack = append(stack, pair{low, up})
			default:
				if low != nil && low.IsDir() && up.IsDir() {
					up.inherit(low)
				}
				p.low.RemoveChild(name)
				p.low.adopt(name, up)
			}
		}
	}
}

// overlay gives the directory n the attributes that it has below the directory up.
func (n *Node) overlay(up *Node) {
	if !up.Implied {
		n.update(up)
	}
}

// inherit gives an opaque directory that has no entry of its own the attributes of the one it hides.
func (n *Node) inherit(low *Node) {
	if n.Implied {
		n.update(low)
		n.SetXattr(OpaqueXattr, "y")
	}
}

// Resolve removes what has a meaning only over other layers, from a tree that has none below it:
// whiteouts, and the mark of opaque directories.
func (t *Tree) Resolve() {
	stack := []*Node{t.Root}
	for len(stack) > 0 {
		d := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		d.DeleteXattr(OpaqueXattr)
		for name, c := range d.children {
			switch {
			case c.IsWhiteout():
				delete(d.children, name)
			case c.IsDir():
				stack = append(stack, c)
			}
		}
	}
}

// adopt is SetChild for a node that keeps the link count it has from its old directory.
func (n *Node) adopt(name string, c *Node) {
	if n.children == nil {
		n.children = make(map[string]*Node)
	}
	n.children[name] = c
	if c.IsDir() {
		n.Nlink++
	}
}

// Shift moves the contents of all files by blocks: the image that they count is no longer the first
// thing on its disk.
func (t *Tree) Shift(blocks uint32) {
	seen := make(map[*Node]struct{})
	stack := []*Node{t.Root}
	for len(stack) > 0 {
		d := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, c := range d.children {
			if c.IsDir() {
				stack = append(stack, c)
				continue
			}
			if len(c.Runs) == 0 {
				continue
			}
			if c.Nlink > 1 {
				if _, again := seen[c]; again {
					continue
				}
				seen[c] = struct{}{}
			}
			for i := range c.Runs {
				c.Runs[i].Start += blocks
			}
		}
	}
	t.NextBlock += blocks
}
