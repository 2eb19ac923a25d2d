package treecopy

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"
)

// Owners selects the owners of unpacked files.
type Owners uint8

const (
	Ours     Owners = iota // the user of this process
	Archived               // those in the tar
)

// maxDirs bounds the memory for directories whose modes and times are set at the end, in bytes.
const maxDirs = 256 << 20

// Unpack unpacks a tar, which may be hostile, into root. Nothing is written outside root, whatever links exist or the
// tar contains. Unless as is ".", an entry other than as and those below it is an error. Entries that are no files,
// directories or links are left out and reported to skip.
func Unpack(r io.Reader, root *os.Root, as string, owners Owners, skip func(name, why string)) error {
	u := unpacker{root: root, as: as, owners: owners, skip: skip}
	defer u.close()
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the tar: %w", err)
		}
		if u.n++; u.n > maxEntries {
			return fmt.Errorf("the tar has more than %d entries", maxEntries)
		}
		if err := u.entry(h, in); err != nil {
			return fmt.Errorf("unpack %.200q: %w", h.Name, err)
		}
	}
	// Deepest first: changes below a directory change its time, and its mode may forbid them.
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		if err := u.finish(d.root, d.name, d.attributes); err != nil {
			return fmt.Errorf("unpack %.200q: %w", d.name, err)
		}
	}
	return nil
}

type unpacker struct {
	root   *os.Root
	as     string   // the only entry that may be unpacked; ".": all
	inside *os.Root // the directory of that name, once it was unpacked
	owners Owners
	skip   func(name, why string)
	n      int
	dirs   []dirEntry
	kept   int // approximate size of dirs in bytes
}

// attributes are the attributes of an entry that are kept. The rest of a header can be large.
type attributes struct {
	mode     fs.FileMode
	uid, gid int
	time     time.Time
}

type dirEntry struct {
	root *os.Root
	name string
	attributes
}

func (u *unpacker) close() {
	if u.inside != nil {
		u.inside.Close()
	}
}

// place returns the directory, and the path below it, to which a path of the tar refers.
func (u *unpacker) place(tarName string) (root *os.Root, name string, err error) {
	name, err = clean(tarName)
	if err != nil || u.as == "." || name == u.as {
		return u.root, name, err
	}
	below, ok := strings.CutPrefix(name, u.as+"/")
	if !ok || u.inside == nil {
		return nil, "", fmt.Errorf("the tar names %.100q, which was not asked for", tarName)
	}
	return u.inside, below, nil
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	root, name, err := u.place(h.Name)
	if err != nil {
		return err
	}
	if dir := path.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	a := attributes{h.FileInfo().Mode(), h.Uid, h.Gid, h.ModTime}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.dir(root, name, a)
	case tar.TypeReg, tar.TypeSymlink, tar.TypeLink:
	default:
		u.skip(h.Name, "it is no file, folder or link")
		return nil
	}
	if name == "." {
		return errors.New("the folder itself cannot be replaced")
	}
	if fi, err := root.Lstat(name); err == nil {
		if fi.IsDir() {
			return errors.New("there is a folder of this name")
		}
		if err := root.Remove(name); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		if err := root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return u.own(root, name, a)
	case tar.TypeLink:
		return u.link(root, name, h.Linkname)
	}
	return u.file(root, name, a, content)
}

// link creates a hard link to a file below the same directory.
func (u *unpacker) link(root *os.Root, name, to string) error {
	from, target, err := u.place(to)
	if err != nil {
		return err
	}
	if from == root {
		var fi fs.FileInfo
		if fi, err = root.Lstat(target); err == nil && fi.Mode()&fs.ModeSymlink == 0 {
			return root.Link(target, name)
		}
	}
	return errors.Join(err, fmt.Errorf("a link to %.100q, which is no file of the tar", to))
}

func (u *unpacker) dir(root *os.Root, name string, a attributes) error {
	if name != "." {
		err := root.Mkdir(name, 0o700)
		if errors.Is(err, fs.ErrExist) {
			fi, serr := root.Lstat(name)
			if serr == nil && !fi.IsDir() {
				return errors.New("there is something else of this name")
			}
			err = serr
		}
		if err != nil {
			return err
		}
	} else if u.owners == Ours {
		return nil // an existing directory keeps its attributes
	}
	if name == u.as && name != "." && u.inside == nil {
		var err error
		if u.inside, err = root.OpenRoot(name); err != nil {
			return err
		}
	}
	if u.kept += len(name) + 128; u.kept > maxDirs {
		return fmt.Errorf("the tar has too many folders: their names take more than %d bytes", maxDirs)
	}
	u.dirs = append(u.dirs, dirEntry{root, name, a})
	return nil
}

// file writes a file. On error an incomplete file is removed.
func (u *unpacker) file(root *os.Root, name string, a attributes, content io.Reader) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, root.Remove(name))
	}
	return u.finish(root, name, a)
}

// finish sets owner, mode and time of a file or folder.
func (u *unpacker) finish(root *os.Root, name string, a attributes) error {
	if err := u.own(root, name, a); err != nil {
		return err
	}
	mode := a.mode
	if u.owners == Ours {
		mode = mode.Perm()
	}
	if err := root.Chmod(name, mode&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)); err != nil {
		return err
	}
	return root.Chtimes(name, time.Time{}, a.time)
}

func (u *unpacker) own(root *os.Root, name string, a attributes) error {
	if u.owners == Ours {
		return nil
	}
	return root.Lchown(name, a.uid, a.gid)
}
