package erofs

import "github.com/stratavm/strata/internal/format/layertree"

// impliedXattr marks a directory for which the layer has no entry. An index uses the attributes of the lower directory
// instead. The name is in overlayfs's own namespace: overlayfs hides it, and no layer tar can set it, because
// attributes of that namespace are dropped.
const impliedXattr = "trusted.overlay.strata.implied"

// markImplied sets the mark on all implied directories.
func markImplied(tree *layertree.Tree) error {
	return tree.Walk(func(_ string, n *layertree.Node) error {
		if n.Implied {
			n.SetXattr(impliedXattr, "y")
		}
		return nil
	})
}

// readImplied removes the mark and sets Node.Implied.
func readImplied(n *layertree.Node) {
	if _, ok := n.Xattr(impliedXattr); ok {
		n.DeleteXattr(impliedXattr)
		n.Implied = n.IsDir()
	}
}
