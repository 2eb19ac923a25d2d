package layerdir_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/layerdir"
)

var formats = []struct {
	format layerdir.Format
	fstype string
	fsck   []string
}{
	{layerdir.VHD, "ext4", []string{"fsck.ext4", "-fn"}},
	{layerdir.EROFS, "erofs", []string{"fsck.erofs"}},
}

// convert makes a layer of tar and has the file system's own checker look at it.
func convert(t *testing.T, format int, tar []byte) string {
	t.Helper()
	f := formats[format]
	res, err := layerdir.Convert(t.Context(),
		layerdir.Options{Format: f.format, Tar: bytes.NewReader(tar), Dir: filepath.Join(t.TempDir(), "layer")})
	if err != nil {
		t.Fatal(err)
	}
	treetest.Run(t, f.fsck[0], append(f.fsck[1:], res.Path)...)
	return res.Path
}

func needRoot(t *testing.T) {
	t.Helper()
	treetest.NeedRoot(t, "to mount")
}

// mounted returns the description of a layer that is mounted, without what ext4 adds.
func mounted(t *testing.T, format int, path string) map[string]string {
	t.Helper()
	d := treetest.Describe(t, treetest.Mount(t, path, formats[format].fstype))
	if formats[format].format == layerdir.VHD {
		delete(d, "lost+found")
	}
	return d
}

// TestSameAsTar compares what the kernel shows of our layers with what tar unpacks.
func TestSameAsTar(t *testing.T) {
	needRoot(t)
	tar := treetest.Everything(t)
	file := filepath.Join(t.TempDir(), "layer.tar")
	if err := os.WriteFile(file, tar, 0o644); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	treetest.Untar(t, file, dir)
	implied := treetest.Implied(t, bytes.NewReader(tar))
	want := treetest.WithoutTimes(treetest.Describe(t, dir), implied)
	for i, f := range formats {
		t.Run(string(f.format), func(t *testing.T) {
			got := treetest.WithoutTimes(treetest.Unmarked(mounted(t, i, convert(t, i, tar))), implied)
			if d := treetest.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestHolesStayHoles: zeroes take no space in either format.
func TestHolesStayHoles(t *testing.T) {
	tar := treetest.Tar(t, treetest.Entry{Name: "sparse", Body: "a" + strings.Repeat("\x00", 64<<20) + "z"})
	for i, f := range formats {
		t.Run(string(f.format), func(t *testing.T) {
			st, err := os.Stat(convert(t, i, tar))
			if err != nil {
				t.Fatal(err)
			}
			if st.Size() > 4<<20 {
				t.Errorf("a file of 64 MiB with two bytes made a layer of %d bytes", st.Size())
			}
		})
	}
}

// TestManyExtents: more extents than an inode, or one block of the extent tree, can hold.
func TestManyExtents(t *testing.T) {
	needRoot(t)
	var body strings.Builder
	for i := range 800 {
		body.WriteString(strings.Repeat(string(rune('a'+i%26)), 64<<10))
		body.WriteString(strings.Repeat("\x00", 64<<10))
	}
	tar := treetest.Tar(t, treetest.Entry{Name: "extents", Body: body.String()})
	for i, f := range formats {
		t.Run(string(f.format), func(t *testing.T) {
			dir := treetest.Mount(t, convert(t, i, tar), f.fstype)
			got, err := os.ReadFile(filepath.Join(dir, "extents"))
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != body.String() {
				t.Error("the content differs")
			}
		})
	}
}

// TestSameBytes: the same tar gives the same file system, and another one another.
func TestSameBytes(t *testing.T) {
	tar := treetest.Everything(t)
	for i, f := range formats {
		read := func(tar []byte) []byte {
			b, err := os.ReadFile(convert(t, i, tar))
			if err != nil {
				t.Fatal(err)
			}
			if f.format == layerdir.VHD {
				b = b[:len(b)-512] // the footer has a random id
			}
			return b
		}
		if !bytes.Equal(read(tar), read(tar)) {
			t.Errorf("%s: two conversions of the same tar differ", f.format)
		}
	}
}

// TestManyFiles: more inodes than a block group of ext4 has room for, in little space.
func TestManyFiles(t *testing.T) {
	needRoot(t)
	const n = 70_000
	entries := make([]treetest.Entry, n)
	for i := range entries {
		entries[i].Name = fmt.Sprintf("d%d/f%d", i%70, i)
	}
	tar := treetest.Tar(t, entries...)
	for i, f := range formats {
		t.Run(string(f.format), func(t *testing.T) {
			path := convert(t, i, tar)
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if st.Size() > n*512 {
				t.Errorf("%d empty files made a layer of %d bytes", n, st.Size())
			}
			dir := treetest.Mount(t, path, f.fstype)
			files, err := os.ReadDir(filepath.Join(dir, "d69"))
			if err != nil || len(files) != n/70 {
				t.Errorf("%d files, %v", len(files), err)
			}
		})
	}
}
