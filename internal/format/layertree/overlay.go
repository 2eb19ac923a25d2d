package layertree

// Overlay merges the layer upper into t, as overlayfs would show the two. Whiteouts remove names; opaque directories
// replace; other directories are merged and get the attributes of the upper one, unless it is [Node.Implied]; anything
// else replaces. The runs of both must refer to blocks of the same image. upper must not be used after that: t owns its
// nodes.
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

// Resolve removes whiteouts and the opaque attribute, for a tree that has no layers below it.
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

// adopt is SetChild for a node moved from another directory: its link count does not change.
func (n *Node) adopt(name string, c *Node) {
	if n.children == nil {
		n.children = make(map[string]*Node)
	}
	n.children[name] = c
	if c.IsDir() {
		n.Nlink++
	}
}

// Shift adds a number of blocks to the location of all contents, for an image that is not at the beginning of its disk.
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
