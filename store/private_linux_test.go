package store_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/store"
)

// TestPrivate: whatever the umask, nothing that the store makes is for others, and a store that was is taken from
// them when it is opened.
func TestPrivate(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	dir := filepath.Join(t.TempDir(), "state", "store")
	s := open(t, dir, store.Options{})
	r := request(t, "x", 0, 2)
	r.Formats = []store.Format{{File: layerdir.EROFS, Verity: true}, vhd}
	img := mustImport(t, s, r)
	while := filepath.Join(t.TempDir(), "while")
	if err := os.WriteFile(while, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	lease, err := s.Lease(t.Context(), img, "test", while)
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Release()
	if _, err := s.Scratch(t.Context(), filepath.Join(dir, "scratch"), 64<<20); err != nil { // and a template
		t.Fatal(err)
	}
	folders, err := s.Folders(img, store.Format{File: layerdir.EROFS, Verity: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := layerdir.IndexDisk(filepath.Join(dir, "index"),
		[]string{filepath.Join(folders[1], "layer.erofs"), filepath.Join(folders[0], "layer.erofs")}); err != nil {
		t.Fatal(err)
	}
	files := 0
	if err := filepath.WalkDir(filepath.Dir(dir), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type() == fs.ModeSymlink {
			return err
		}
		fi, err := d.Info()
		want := fs.FileMode(0o077) // nothing for others
		if name := d.Name(); name == layerdir.EROFS.FileName() || name == layerdir.VHD.FileName() {
			want = 0o033 // a VMM reads it by its descriptor; the folder is closed
		}
		if err == nil && fi.Mode().Perm()&want != 0 {
			t.Errorf("%s has the mode %v", path, fi.Mode())
		}
		files++
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if files < 25 {
		t.Errorf("only %d files and folders were looked at", files)
	}
	for _, mode := range []os.FileMode{0o755, 0o777, 0o750} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		open(t, dir, store.Options{})
		if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("a store with the mode %o has %v after it was opened, %v", mode, fi.Mode(), err)
		}
	}
}
