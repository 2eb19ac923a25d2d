package store_test

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/store"
)

// TestTreesKilled: layers that are directory trees appear whole or not at all, and go without a trace.
func TestTreesKilled(t *testing.T) {
	if treetest.InUserNamespace(t, 65536) {
		t.Run("importing", TestKilledAtEveryStep)
		t.Run("collecting", TestKilledCollecting)
	}
}

// TestCheckTree: whatever changes in a tree is found; what an overlay does below one is no change.
func TestCheckTree(t *testing.T) {
	if !treetest.InUserNamespace(t, 65536) {
		return
	}
	type entry = treetest.Entry
	r := request(t, "x", 0, 0)
	below := layer(treetest.Tar(t, entry{Name: "w"})) // without it nothing is left of the whiteout
	r.Layers = []store.Layer{below, layer(treetest.Tar(t, entry{Name: "d/"},
		entry{Name: "d/f", Body: strings.Repeat("f", 100_000), UID: 3, PAX: map[string]string{"SCHILY.xattr.user.a": "1"}},
		entry{Name: "d/g", Body: "g"}, entry{Name: "d/h", Type: tar.TypeLink, Link: "d/g"},
		entry{Name: "l", Type: tar.TypeSymlink, Link: "d"}, entry{Name: ".wh.w"}))}
	for name, change := range map[string]func(at func(string) string) error{
		"nothing": func(at func(string) string) error { _, err := os.ReadFile(at("d/f")); return err },
		"content": func(at func(string) string) error {
			return errors.Join(os.WriteFile(at("d/f"), []byte(strings.Repeat("f", 99_999)+"x"), 0o644),
				os.Chtimes(at("d/f"), time.Time{}, time.Unix(1_600_000_000, 123_456_789)))
		},
		"mode":      func(at func(string) string) error { return os.Chmod(at("d/f"), 0o640) },
		"owner":     func(at func(string) string) error { return os.Lchown(at("l"), 5, -1) },
		"time":      func(at func(string) string) error { return os.Chtimes(at("d"), time.Time{}, time.Unix(1, 0)) },
		"attribute": func(at func(string) string) error { return unix.Lsetxattr(at("d/f"), "user.a", []byte("2"), 0) },
		"whiteout":  func(at func(string) string) error { return os.Remove(at("w")) },
		"new name":  func(at func(string) string) error { return os.WriteFile(at("new"), nil, 0o644) },
		"hard link": func(at func(string) string) error {
			b, err := os.ReadFile(at("d/g"))
			return errors.Join(err, os.Remove(at("d/h")), os.WriteFile(at("d/h"), b, 0o644),
				os.Chtimes(at("d/h"), time.Time{}, time.Unix(1_600_000_000, 123_456_789)),
				os.Chtimes(at("d"), time.Time{}, time.Unix(1_600_000_000, 123_456_789)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir(), store.Options{})
			img := mustImport(t, s, r)
			whole(t, s)
			folders, err := s.Folders(img, r.Formats[0])
			if err != nil {
				t.Fatal(err)
			}
			tree := filepath.Join(folders[0], layerdir.Tree.FileName())
			if err := change(func(p string) string { return filepath.Join(tree, p) }); err != nil {
				t.Fatal(err)
			}
			report, err := s.Check(t.Context())
			if err != nil || (len(report.Problems) == 0) != (name == "nothing") {
				t.Errorf("found %+v, %v", report.Problems, err)
			}
		})
	}
}

// TestTreesOfOthers: what was made with other ids is told, and not repaired; a collection takes it.
func TestTreesOfOthers(t *testing.T) {
	if !treetest.InUserNamespace(t, 65536) {
		return
	}
	s := open(t, t.TempDir(), store.Options{})
	img := mustImport(t, s, request(t, "x", 0, 1))
	folders, err := s.Folders(img, store.Format{File: layerdir.Tree})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folders[0], "layer.dir.ids"), []byte("others"), 0o644); err != nil {
		t.Fatal(err)
	}
	report, err := s.Check(t.Context())
	if err != nil || len(report.Problems) != 1 || !strings.Contains(report.Problems[0].Reason, "other ids") {
		t.Fatalf("found %+v, %v", report.Problems, err)
	}
	if err := s.Repair(t.Context(), report, nil); err != nil { // nobody is asked to import it again
		t.Error(err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(folders[0], layerdir.Tree.FileName(), "file0"), &st); err != nil {
		t.Error(err)
	}
	if err := s.Remove(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if r := gc(t, s); r.Bytes < st.Blocks*512 {
		t.Errorf("%d bytes were freed, the file alone has %d", r.Bytes, st.Blocks*512)
	}
	if l, c := objects(t, s); l+c != 0 {
		t.Errorf("%d layers and %d chains are left", l, c)
	}
}
