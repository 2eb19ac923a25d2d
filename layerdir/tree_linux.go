package layerdir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/format/layertree"
)

// copyPiece is how many bytes are copied between two checks of the context.
const copyPiece = 64 << 20

// unpacker is the state of an unpack.
type unpacker struct {
	root  *os.Root
	data  *os.File
	one   bool
	first map[*layertree.Node]string // the first name of a file with several hard links
	bytes int64
}

// unpack creates the tree at dir, which must not exist, with the contents in data, and syncs it. With one, all files
// belong to a single user. It returns the total size of the files.
//
// No other process works in dir, and names are always resolved relative to an open directory, so that nothing in the
// tree can lead out of it and no path is too long.
func unpack(ctx context.Context, tree *layertree.Tree, data *os.File, dir string, one bool) (int64, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, err
	}
	defer root.Close() // only used for lookups
	u := &unpacker{root: root, data: data, one: one, first: map[*layertree.Node]string{}}
	type folder struct {
		path string
		node *layertree.Node
	}
	folders := []folder{{".", tree.Root}}
	for i := 0; i < len(folders); i++ {
		d := folders[i]
		err := u.in(d.path, func(at string) error {
			for _, name := range d.node.Names() {
				n, p := d.node.Child(name), path.Join(d.path, name)
				if n.IsDir() {
					folders = append(folders, folder{p, n})
				}
				if err := u.add(ctx, at+name, p, n); err != nil {
					return fmt.Errorf("/%s: %w", p, bare(err))
				}
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	// Set the attributes of directories last, deepest first: adding an entry changes the directory's mtime, and a
	// default ACL would be inherited.
	for _, d := range slices.Backward(folders) {
		err := u.in(d.path, func(at string) error { return u.attributes(at+".", d.node) })
		if err != nil {
			return 0, fmt.Errorf("/%s: %w", strings.TrimPrefix(d.path, "."), bare(err))
		}
	}
	return u.bytes, u.in(".", func(at string) error {
		f, err := os.Open(at)
		if err != nil {
			return err
		}
		return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
	})
}

// in calls f with a path prefix for the names in a directory of the tree.
func (u *unpacker) in(dir string, f func(at string) error) error {
	d, err := u.root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close() // only used for lookups
	return f(fmt.Sprintf("/proc/self/fd/%d/", d.Fd()))
}

// bare removes the /proc/self/fd path from an error, which is useless to the user.
func bare(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok && err == error(pe) {
		return fmt.Errorf("%s: %w", pe.Op, pe.Err)
	}
	return err
}

// add creates node n at path at; p is its path in the tree.
func (u *unpacker) add(ctx context.Context, at, p string, n *layertree.Node) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if first, again := u.first[n]; again {
		return u.in(path.Dir(first), func(dir string) error { return unix.Link(dir+path.Base(first), at) })
	}
	if !n.IsDir() && n.Nlink > 1 {
		u.first[n] = p
	}
	var err error
	switch n.Type() {
	case layertree.TypeDir:
		return os.Mkdir(at, 0o700)
	case layertree.TypeChar, layertree.TypeBlock:
		return unix.Mknod(at, unix.S_IFCHR, 0)
	case layertree.TypeRegular:
		err = u.file(ctx, at, n)
	case layertree.TypeSymlink:
		err = unix.Symlink(n.Target, at)
	default:
		err = unix.Mknod(at, n.Type()|0o600, 0)
	}
	if err != nil {
		return err
	}
	return u.attributes(at, n)
}

func (u *unpacker) file(ctx context.Context, at string, n *layertree.Node) (err error) {
	f, err := os.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for _, r := range n.Runs {
		to, from := int64(r.File)*layertree.BlockSize, int64(r.Start)*layertree.BlockSize
		for left := min(int64(r.Blocks)*layertree.BlockSize, n.Size-to); left > 0; {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			_, err := f.Seek(to, io.SeekStart)
			_, err2 := u.data.Seek(from, io.SeekStart)
			if err := errors.Join(err, err2); err != nil {
				return err
			}
			// copy_file_range copies in the kernel, or shares blocks, if the file system can.
			done, err := io.CopyN(f, u.data, min(left, copyPiece))
			if err != nil {
				return err
			}
			to, from, left = to+done, from+done, left-done
		}
	}
	u.bytes += n.Size
	return f.Truncate(n.Size)
}

// attributes sets owner, mode, extended attributes and mtime, in an order in which none resets another.
func (u *unpacker) attributes(at string, n *layertree.Node) error {
	uid, gid := int(n.UID), int(n.GID)
	if u.one {
		uid, gid = 0, 0
	}
	if err := unix.Lchown(at, uid, gid); err != nil {
		return fmt.Errorf("owner %d:%d: %w%s", uid, gid, err, moreIDs(err))
	}
	if n.Type() != layertree.TypeSymlink {
		if err := unix.Chmod(at, n.Mode&layertree.PermMask); err != nil {
			return fmt.Errorf("permissions %o: %w", n.Mode&layertree.PermMask, err)
		}
	}
	for _, x := range n.Xattrs {
		name, ok := u.xattr(n, x.Name)
		if !ok {
			continue
		}
		if err := unix.Lsetxattr(at, name, []byte(x.Value), 0); err != nil {
			remedy := moreIDs(err)
			if errors.Is(err, unix.ENOTSUP) {
				remedy = ": choose a folder on a file system that has such attributes (ext4, XFS, btrfs)"
			}
			return fmt.Errorf("attribute %s: %w%s", name, err, remedy)
		}
	}
	t := unix.Timespec{Sec: n.Sec, Nsec: int64(n.Nsec)}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, at, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("time: %w", err)
	}
	return nil
}

// xattr returns the name of an extended attribute in a user namespace; ok is false if it cannot be set there.
func (u *unpacker) xattr(n *layertree.Node, name string) (string, bool) {
	switch {
	case name == layertree.OpaqueXattr:
		return "user.overlay.opaque", n.IsDir()
	case name == layertree.AccessACL, name == layertree.DefaultACL:
		return name, !u.one
	case name == "security.capability":
		return name, n.Type() == layertree.TypeRegular
	case strings.HasPrefix(name, "user."):
		return name, n.IsDir() || n.Type() == layertree.TypeRegular
	}
	return "", false
}

// moreIDs returns a remedy for the kernel's error about an unmapped id.
func moreIDs(err error) string {
	if !errors.Is(err, unix.EINVAL) {
		return ""
	}
	return ": the user namespace lacks an id: make one that has more " +
		"(unshare --map-auto -Urm, podman unshare; see /etc/subuid), or run as root"
}
