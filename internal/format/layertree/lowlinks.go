package layertree

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// lowLinks makes the hard links that wait, those into the layers below too: overlayfs cannot link to a file
// of another layer, so that the file is copied into this one, under its own name and as the link.
func (rd *reader) lowLinks() error {
	f := &follower{tree: rd.tree, put: rd.put}
	root := func() *step { return &step{own: rd.tree.Root, low: rd.o.Below.root()} }
	left := rd.waiting
	rd.waiting = make(map[place][]pendingLink)
	rd.ready = rd.ready[:0]
	for _, l := range left {
		rd.ready = append(rd.ready, l...)
	}
	slices.SortFunc(rd.ready, func(a, b pendingLink) int { return a.entry - b.entry })
	for len(rd.ready) > 0 {
		l := rd.ready[0]
		rd.ready = rd.ready[1:]
		if err := rd.lowLink(f, root, l); err != nil {
			return fmt.Errorf("layer tar: entry %d, %s: %w", l.entry, quote(l.name), err)
		}
	}
	return rd.linksLeft()
}

func (rd *reader) lowLink(f *follower, root func() *step, l pendingLink) error {
	dirName, base := path.Split(l.target)
	from, err := f.walk(root(), dirName)
	if err != nil {
		return err
	}
	var target *Node
	if from != nil {
		target = from.child(base)
		if low := from.below(base); target == nil && len(low) > 0 {
			if low.is(TypeDir) {
				return fmt.Errorf("a hard link to the directory %s: %w", quote(l.target), ErrInvalid)
			}
			if target, err = rd.copyUp(f, from, base, low[0]); err != nil {
				return fmt.Errorf("hard link to %s in a layer below: %w", quote(l.target), err)
			}
		}
	}
	if target == nil || target.IsWhiteout() {
		at := place{rd.tree.Root, ""}
		for s := from; s != nil; s = s.up {
			if s.own != nil {
				at = place{s.own, base}
				break
			}
			base = s.name
		}
		rd.waiting[at] = append(rd.waiting[at], l)
		return nil
	}
	dirName, base = path.Split(l.name)
	to, err := f.walk(root(), dirName)
	if err != nil {
		return err
	}
	if to == nil {
		return fmt.Errorf("there is no way to %s: %w", quote(dirName), ErrInvalid)
	}
	if err := f.create(to); err != nil {
		return err
	}
	if old := to.own.Child(base); old != nil && !old.IsWhiteout() { // an entry that came later has won
		return nil
	}
	return rd.setLink(to.own, base, target, l)
}

// copyUp copies a file of a layer below into the layer, under the name that it has there.
func (rd *reader) copyUp(f *follower, dir *step, name string, low lowPart) (*Node, error) {
	if err := rd.account(1, len(name)); err != nil {
		return nil, err
	}
	if err := f.create(dir); err != nil {
		return nil, err
	}
	src := low.node
	n := &Node{Major: src.Major, Minor: src.Minor, Target: src.Target}
	n.update(src)
	n.Xattrs = slices.Clone(n.Xattrs)
	if src.Type() == TypeRegular {
		names := []string{name}
		for s := dir; s.up != nil; s = s.up {
			names = append(names, s.name)
		}
		slices.Reverse(names)
		in, err := rd.o.Below.Layers[low.layer].Open(strings.Join(names, "/"), src)
		if err != nil {
			return nil, err
		}
		defer in.Close() // it was only read
		if err := rd.content(n, src.Size, in); err != nil {
			return nil, err
		}
	}
	rd.put(dir.own, name, n)
	return n, nil
}
