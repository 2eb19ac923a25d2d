package erofs_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/format/erofs"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

// disk creates the disk that an index over images, top first, describes.
func disk(t testing.TB, images []string) string {
	t.Helper()
	dir := t.TempDir()
	index, err := os.Create(filepath.Join(dir, "index"))
	if err != nil {
		t.Fatal(err)
	}
	defer index.Close()
	layers := make([]erofs.IndexLayer, len(images))
	files := make([]*os.File, len(images))
	for i, path := range images {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		files[i], layers[i] = f, erofs.IndexLayer{Image: f, Bytes: st.Size()}
	}
	pieces, err := erofs.Index(index, layers)
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(dir, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for _, p := range pieces {
		f := index
		if p.Layer >= 0 {
			f = files[p.Layer]
		}
		if _, err := io.Copy(out, io.NewSectionReader(f, p.Offset, p.Length)); err != nil {
			t.Fatal(err)
		}
	}
	return out.Name()
}

func stack(t testing.TB) [][]byte {
	link := func(name, to string) entry { return entry{Name: name, Type: tar.TypeLink, Link: to} }
	sparse := strings.Repeat("s", 70_000) + strings.Repeat("\x00", 400_000) + "end"
	return [][]byte{
		treetest.Everything(t),
		treetest.Tar(t, entry{Name: "./"}, entry{Name: "etc/"}, entry{Name: "etc/.wh.passwd"},
			entry{Name: "many/", Mode: 0o700}, entry{Name: "many/.wh..wh..opq"},
			entry{Name: "many/only", Body: "one"}, entry{Name: "setuid", Body: "replaced"}, entry{Name: ".wh.acl"},
			entry{Name: "holes", Body: sparse},
			link("holes2", "holes")),
		treetest.Tar(t, entry{Name: "./"}, entry{Name: "etc/", Mode: 0o711}, entry{Name: "etc/passwd", Body: "new"},
			entry{Name: "fifo/"}, entry{Name: "fifo/was-a-fifo"},
			entry{Name: "sticky", Body: "was a directory"}, entry{Name: ".wh.holes"}, entry{Name: "new/"},
			entry{Name: "new/dir/"}, entry{Name: "acl", Type: tar.TypeSymlink, Link: "xattrs"},
			entry{Name: ".wh.nothing"}, entry{Name: ".wh.dir-xattr"}, entry{Name: "dir-xattr/in"}),
	}
}

// TestIndexIsOverlay compares what the kernel shows of the index with what its overlayfs shows of the
// layers. All directories that are in several layers have entries: see TestImplied for the others.
func TestIndexIsOverlay(t *testing.T) {
	treetest.NeedRoot(t, "to mount")
	tars := stack(t)
	for n := 2; n <= len(tars); n++ {
		t.Run(fmt.Sprint(n, " layers"), func(t *testing.T) {
			var images, lowers []string // top first
			for _, b := range tars[:n] {
				img := image(t, b)
				treetest.Run(t, "fsck.erofs", img)
				images = append([]string{img}, images...)
			}
			for _, img := range images {
				lowers = append(lowers, treetest.Mount(t, img, "erofs"))
			}
			over := t.TempDir()
			if err := unix.Mount("overlay", over, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lowers, ":")); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := unix.Unmount(over, 0); err != nil {
					t.Error(err)
				}
			}()
			d := disk(t, images)
			treetest.Run(t, "fsck.erofs", d)
			want, got := treetest.Describe(t, over), treetest.Describe(t, treetest.Mount(t, d, "erofs"))
			// Overlayfs counts the names that a file has in its layer, hidden or not.
			for _, m := range []map[string]string{want, got} {
				for _, path := range []string{"deep/a/b/c/hard", "hard-fifo", "holes2"} {
					m[path] = strings.Replace(strings.Replace(m[path], " links=1", "", 1), " links=2", "", 1)
				}
			}
			if diff := treetest.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestForeignImages: an image of mkfs.erofs, with contents inside of inodes and shared attributes, can
// be a layer of an index too.
func TestForeignImages(t *testing.T) {
	treetest.NeedRoot(t, "to mount")
	dir := t.TempDir()
	for i, size := range []int{0, 1, 100, 4000, 4030, 4032, 4095, 4096, 4097, 8000, 12_258, 100_000} {
		path := filepath.Join(dir, fmt.Sprintf("f%d", size))
		if err := os.WriteFile(path, bytes.Repeat([]byte{byte('a' + i)}, size), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setxattr(path, "user.shared", []byte(strings.Repeat("same", 20)), 0); err != nil {
			t.Fatal(err)
		}
	}
	foreign := filepath.Join(t.TempDir(), "foreign.erofs")
	treetest.Run(t, "mkfs.erofs", "-x1", foreign, dir)
	upper := image(t, treetest.Tar(t, entry{Name: "f100", Body: "changed"}, entry{Name: ".wh.f1"}))
	got := treetest.Describe(t, treetest.Mount(t, disk(t, []string{upper, foreign}), "erofs"))
	want := treetest.Describe(t, treetest.Mount(t, foreign, "erofs"))
	top := treetest.Describe(t, treetest.Mount(t, upper, "erofs"))
	delete(want, "f1")
	want["f100"] = top["f100"] // the root has no entry in the upper layer and keeps its attributes
	if diff := treetest.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
