package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// hashTree returns the digest of a directory tree: of all names in byte order, directories before their contents, each
// with type, mode, owner, mtime, extended attributes and content. Further names of a hard-linked file refer to the
// first. The size of directories is left out, as it depends on the file system.
func hashTree(ctx context.Context, dir string) (digest string, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	t := treeHash{h: sha256.New(), first: map[[2]uint64]string{}, buf: make([]byte, maxXattrs)}
	if err := t.add(ctx, dir, "."); err != nil {
		return "", err
	}
	for dirs := []string{"."}; len(dirs) > 0; {
		d := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		below, err := t.entries(ctx, root, d)
		if err != nil {
			return "", fmt.Errorf("%s: %w", d, err)
		}
		slices.Reverse(below)
		dirs = append(dirs, below...)
	}
	return fmt.Sprintf("%s%x", digestPrefix, t.h.Sum(nil)), nil
}

type treeHash struct {
	h     hash.Hash
	first map[[2]uint64]string // the first name of a hard-linked file, by device and inode
	buf   []byte
}

// entries adds the entries of a directory and returns its subdirectories.
func (t *treeHash) entries(ctx context.Context, root *os.Root, dir string) (below []string, err error) {
	f, err := root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	list, err := f.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b os.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, e := range list {
		p := path.Join(dir, e.Name())
		// By way of the descriptor no path is too long, and no link is followed.
		if err := t.add(ctx, fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), e.Name()), p); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name(), err)
		}
		if e.IsDir() {
			below = append(below, p)
		}
	}
	return below, nil
}

func (t *treeHash) add(ctx context.Context, at, name string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var st unix.Stat_t
	if err := unix.Lstat(at, &st); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		id := [2]uint64{uint64(st.Dev), st.Ino}
		if first, again := t.first[id]; again {
			fmt.Fprintf(t.h, "%q is %q\n", name, first)
			return nil
		}
		t.first[id] = name
	}
	sec, nsec := st.Mtim.Unix()
	fmt.Fprintf(t.h, "%q mode=%o owner=%d:%d time=%d.%09d device=%d", name, st.Mode, st.Uid, st.Gid, sec, nsec, st.Rdev)
	switch kind {
	case unix.S_IFREG:
		sum, err := hashFile(ctx, at)
		if err != nil {
			return err
		}
		fmt.Fprintf(t.h, " content=%s", sum)
	case unix.S_IFLNK:
		target, err := os.Readlink(at)
		if err != nil {
			return err
		}
		fmt.Fprintf(t.h, " target=%q", target)
	}
	if err := t.xattrs(at); err != nil {
		return err
	}
	_, err := fmt.Fprintln(t.h)
	return err
}

// maxXattrs is the kernel's limit on the list of names and on a value, in bytes.
const maxXattrs = 64 << 10

func (t *treeHash) xattrs(at string) error {
	n, err := unix.Llistxattr(at, t.buf)
	if err != nil {
		return fmt.Errorf("list attributes: %w", err)
	}
	names := strings.Split(string(t.buf[:n]), "\x00")
	slices.Sort(names)
	for _, name := range names {
		if name == "" || strings.HasPrefix(name, "security.") && name != "security.capability" {
			continue // such as security labels that the host sets on all files
		}
		n, err := unix.Lgetxattr(at, name, t.buf)
		if err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
		fmt.Fprintf(t.h, " %s=%q", name, t.buf[:n])
	}
	return nil
}
