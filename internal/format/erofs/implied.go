package erofs

import "github.com/stratavm/strata/internal/format/layertree"

// impliedXattr marks, in a layer, a directory for which the layer has no entry. An index then shows the
// attributes of the directory below. The name lies where overlayfs keeps its own: it hides the mark, and
// no layer tar can set it, because attributes of that kind are dropped.
const impliedXattr = "trusted.overlay.strata.implied"

// markImplied gives all implied directories the mark.
func markImplied(tree *layertree.Tree) error {
	return tree.Walk(func(_ string, n *layertree.Node) error {
		if n.Implied {
			n.SetXattr(impliedXattr, "y")
		}
		return nil
	})
}

// readImplied takes the mark off again.
func readImplied(n *layertree.Node) {
	if _, ok := n.Xattr(impliedXattr); ok {
		n.DeleteXattr(impliedXattr)
		n.Implied = n.IsDir()
	}
}
