package layertree

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"
)

// dir finds a directory, follows symbolic links of the layer inside the root, and makes what is
// missing with the time t.
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
			// The last entry wins: what was a file is a directory now.
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

// impliedDir makes a directory that has no entry of its own, with the time t.
func impliedDir(t time.Time) *Node {
	d := NewDir(0o755)
	d.Sec, d.Nsec = seconds(t)
	d.Implied = true
	return d
}

// link creates a hard link, or remembers it when the target has not come yet.
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
	if dir.Child(base) != target { // else the link is there already
		rd.put(dir, base, target)
	}
	return nil
}

// find looks an entry up by its name, without making anything. Symbolic links on the way, not at the
// end, are followed. Where there is no such entry, missing is what the way ends at.
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

// linksLeft is the error for the hard links that wait for ever.
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

// lateLink makes a hard link, or lets it wait for what is missing on the way to its target.
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

// put sets an entry of a directory and calls the links that wait for it.
func (rd *reader) put(dir *Node, name string, n *Node) {
	dir.SetChild(name, n)
	at := place{dir, name}
	rd.ready = append(rd.ready, rd.waiting[at]...)
	delete(rd.waiting, at)
}
