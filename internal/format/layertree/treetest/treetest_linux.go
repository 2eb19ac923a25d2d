package treetest

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Describe reads the tree at dir: for each path relative to dir one line. The size and link count of
// directories are left out: they depend on the file system.
func Describe(t testing.TB, dir string) map[string]string {
	t.Helper()
	out, err := List(dir)
	if err != nil {
		t.Fatalf("describe %s: %v", dir, err)
	}
	return out
}

// List is Describe for programs.
func List(dir string) (map[string]string, error) {
	out := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		out[rel], err = describe(path)
		return err
	})
	return out, err
}

func describe(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", fmt.Errorf("lstat %s: %w", path, err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "mode=%o owner=%d:%d mtime=%d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		sum, err := digest(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, " links=%d size=%d sha256=%.16s", st.Nlink, st.Size, sum)
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, " links=%d target=%q", st.Nlink, target)
	case unix.S_IFCHR, unix.S_IFBLK:
		fmt.Fprintf(&b, " links=%d device=%d:%d", st.Nlink, unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case unix.S_IFIFO, unix.S_IFSOCK:
		fmt.Fprintf(&b, " links=%d", st.Nlink)
	}
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		return "", fmt.Errorf("list attributes of %s: %w", path, err)
	}
	list := strings.Split(strings.TrimRight(string(names[:n]), "\x00"), "\x00")
	slices.Sort(list)
	for _, name := range list {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("attribute %s of %s: %w", name, path, err)
		}
		fmt.Fprintf(&b, " %s=%x", name, value[:n])
	}
	return b.String(), nil
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// Mount mounts a file system image read-only at a new directory until the test ends. It needs root.
func Mount(t testing.TB, image, fstype string) string {
	t.Helper()
	dir := t.TempDir()
	Run(t, "mount", "-t", fstype, "-o", "ro,loop", image, dir)
	t.Cleanup(func() { Run(t, "umount", dir) })
	return dir
}
