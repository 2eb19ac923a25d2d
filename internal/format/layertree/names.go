package layertree

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"
)

// dir returns a directory. It follows symbolic links of the layer within the root, and creates missing directories with
// the time t.
func (rd *reader) dir(name string, t time.Time) (*Node, error) {
	at := []*Node{rd.tree.Root} // the way from the root
	rest := strings.Split(strings.Trim(name, "/"), "/")
	for followed := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..": // of a symbolic link; above the root is the root
			at = at[:max(len(at)-1, 1)]
			continue
		}
		if len(part) > maxName {
			return nil, fmt.Errorf("a name of %d bytes behind a symbolic link: %w", len(part), ErrInvalid)
		}
		here := at[len(at)-1]
		next := here.Child(part)
		switch {
		case next == nil:
			if err := rd.account(1, len(part)); err != nil {
				return nil, err
			}
			next = impliedDir(t)
			rd.tree.HasImplied = true
			rd.put(here, part, next)
		case next.Type() == TypeSymlink:
			if followed++; followed > maxSymlinks {
				return nil, fmt.Errorf("more than %d symbolic links on the way: %w", maxSymlinks, ErrInvalid)
			}
			if strings.HasPrefix(next.Target, "/") {
				at = at[:1]
			}
			rest = append(strings.Split(next.Target, "/"), rest...)
			continue
		case !next.IsDir():
			// The last entry wins: the file becomes a directory.
			next = impliedDir(t)
			rd.tree.HasImplied = true
			rd.put(here, part, next)
		}
		if at = append(at, next); len(at) > maxDepth {
			return nil, fmt.Errorf("more than %d directories deep: %w", maxDepth, ErrInvalid)
		}
	}
	return at[len(at)-1], nil
}

// impliedDir returns a new directory without an entry of its own, with the time t.
func impliedDir(t time.Time) *Node {
	d := NewDir(0o755)
	d.Sec, d.Nsec = seconds(t)
	d.Implied = true
	return d
}

// link creates a hard link, or defers it if its target has not been read yet.
func (rd *reader) link(dir *Node, base string, l pendingLink) error {
	target, _, err := rd.find(l.target)
	if err != nil {
		return err
	}
	if target == nil {
		rd.pending = append(rd.pending, l)
		return nil
	}
	return rd.setLink(dir, base, target, l)
}

func (rd *reader) setLink(dir *Node, base string, target *Node, l pendingLink) error {
	if target.IsDir() {
		return fmt.Errorf("a hard link to the directory %s: %w", quote(l.target), ErrInvalid)
	}
	if dir.Child(base) != target { // else the link exists already
		rd.put(dir, base, target)
	}
	return nil
}

// find returns an entry by its path, without creating anything. It follows symbolic links except the last component. If
// there is no such entry, missing is the first missing component.
func (rd *reader) find(name string) (n *Node, missing place, err error) {
	at := []*Node{rd.tree.Root}
	rest := strings.Split(name, "/")
	for followed := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = at[:max(len(at)-1, 1)]
			continue
		}
		here := at[len(at)-1]
		next := here.Child(part)
		switch {
		case next == nil, len(rest) > 0 && !next.IsDir() && next.Type() != TypeSymlink:
			return nil, place{here, part}, nil
		case len(rest) > 0 && next.Type() == TypeSymlink:
			if followed++; followed > maxSymlinks {
				return nil, place{}, fmt.Errorf("hard link to %s: more than %d symbolic links on the way: %w",
					quote(name), maxSymlinks, ErrInvalid)
			}
			if strings.HasPrefix(next.Target, "/") {
				at = at[:1]
			}
			rest = append(strings.Split(next.Target, "/"), rest...)
			continue
		}
		at = append(at, next)
	}
	return at[len(at)-1], place{}, nil
}

// links creates the hard links whose targets came after them in the layer; the others keep waiting. What is
// missing on the way to a target is a
// name in a directory: the link waits there until something is put in, and then goes on.
func (rd *reader) links(ctx context.Context) error {
	rd.waiting = make(map[place][]pendingLink)
	for rd.ready = rd.pending; len(rd.ready) > 0; {
		if ctx.Err() != nil {
			return fmt.Errorf("layer tar: make the hard links: %w", context.Cause(ctx))
		}
		l := rd.ready[0]
		rd.ready = rd.ready[1:]
		if err := rd.lateLink(l); err != nil {
			return fmt.Errorf("layer tar: entry %d, %s: %w", l.entry, quote(l.name), err)
		}
	}
	return nil
}

// linksLeft returns the error for hard links whose targets do not exist.
func (rd *reader) linksLeft() error {
	n := 0
	var first pendingLink
	for _, left := range rd.waiting {
		for _, l := range left {
			if n++; n == 1 || l.entry < first.entry {
				first = l
			}
		}
	}
	if n > 0 {
		return fmt.Errorf("layer tar: entry %d, %s: hard link to %s, which is not in the layer or leads back to itself "+
			"(%d such links): %w", first.entry, quote(first.name), quote(first.target), n, ErrLink)
	}
	return nil
}

// lateLink creates a hard link, or makes it wait for the first missing component of its target.
func (rd *reader) lateLink(l pendingLink) error {
	target, missing, err := rd.find(l.target)
	if err != nil {
		return err
	}
	if target == nil {
		rd.waiting[missing] = append(rd.waiting[missing], l)
		return nil
	}
	dirName, base := path.Split(l.name)
	dir, err := rd.dir(dirName, time.Time{})
	if err != nil || dir.Child(base) != nil { // an entry that came later has won
		return err
	}
	return rd.setLink(dir, base, target, l)
}

// put sets an entry of a directory and makes the links that wait for it ready.
func (rd *reader) put(dir *Node, name string, n *Node) {
	dir.SetChild(name, n)
	at := place{dir, name}
	rd.ready = append(rd.ready, rd.waiting[at]...)
	delete(rd.waiting, at)
}
