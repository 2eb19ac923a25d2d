package erofs_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/erofs"
	"github.com/stratavm/strata/internal/format/layertree"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

type entry = treetest.Entry

// image writes a layer to a file.
func image(t testing.TB, tar []byte) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "layer.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := erofs.WriteLayer(t.Context(), f, bytes.NewReader(tar), layertree.Options{}); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func describe(t testing.TB, tree *layertree.Tree) map[string]string {
	out := make(map[string]string)
	if err := tree.Walk(func(path string, n *layertree.Node) error {
		out[path] = fmt.Sprintf("%o %d:%d %d.%d %d:%d %q %v %d %v %d %v", n.Mode, n.UID, n.GID, n.Sec, n.Nsec, n.Major,
			n.Minor, n.Target, n.Xattrs, n.Size, n.Runs, n.Nlink, n.Implied)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestReadBack: what is read from an image is the tree that was written.
func TestReadBack(t *testing.T) {
	b := treetest.Everything(t)
	want, err := layertree.FromTar(t.Context(), bytes.NewReader(b), &bytes.Buffer{}, 1, layertree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	img, err := os.ReadFile(image(t, b))
	if err != nil {
		t.Fatal(err)
	}
	got, err := erofs.Open(bytes.NewReader(img), int64(len(img)))
	if err != nil {
		t.Fatal(err)
	}
	if d := treetest.Diff(describe(t, want), describe(t, got)); d != "" {
		t.Error(d)
	}
	checkAlong(t, img, got)
}

// checkAlong holds what is found on the way to each path to the whole tree.
func checkAlong(t *testing.T, img []byte, whole *layertree.Tree) {
	t.Helper()
	r, err := erofs.NewReader(bytes.NewReader(img), int64(len(img)))
	if err != nil {
		t.Fatal(err)
	}
	if err := whole.Walk(func(path string, n *layertree.Node) error {
		tree, err := r.Along(path + "/none")
		if err != nil {
			return err
		}
		at := tree.Root
		for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
			if name == "" {
				continue
			}
			if at = at.Child(name); at == nil {
				return fmt.Errorf("%s: %q is not found", path, name)
			}
		}
		if at.Mode != n.Mode || at.Target != n.Target || at.IsOpaque() != n.IsOpaque() || at.Len() > 0 {
			return fmt.Errorf("%s: found is %+v, want %+v", path, at, n)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestDamaged(t *testing.T) {
	whole, err := os.ReadFile(image(t, treetest.Tar(t, entry{Name: "f", Body: "x"})))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte
		want   error
	}{
		{"empty", func([]byte) []byte { return nil }, erofs.ErrNotEROFS},
		{"other magic", func(b []byte) []byte { b[1024]++; return b }, erofs.ErrNotEROFS},
		{"truncated", func(b []byte) []byte { return b[:len(b)-4096] }, erofs.ErrCorrupt},
		{"blocks of 16 KiB", func(b []byte) []byte { b[1024+12] = 14; return b }, erofs.ErrUnsupported},
		{"compressed", func(b []byte) []byte { b[1024+80] |= 1; return b }, erofs.ErrUnsupported},
		{"root elsewhere", func(b []byte) []byte { b[1024+15] = 0xff; return b }, erofs.ErrCorrupt},
	} {
		b := c.change(bytes.Clone(whole))
		if _, err := erofs.Open(bytes.NewReader(b), int64(len(b))); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

func FuzzOpen(f *testing.F) {
	for _, entries := range [][]entry{
		{{Name: "d/e/"}, {Name: "d/f", Body: "x"}},
		{{Name: "s", Body: strings.Repeat("\x00", 70_000) + "x", PAX: map[string]string{"SCHILY.xattr.user.a": "b"}}},
	} {
		b, err := os.ReadFile(image(f, treetest.Tar(f, entries...)))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := erofs.NewReader(bytes.NewReader(b), int64(len(b))); err == nil {
			_, _ = r.Along("d/e/f") // it ends, whatever is there
		}
		tree, err := erofs.Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		if err := tree.Walk(func(path string, n *layertree.Node) error {
			for _, r := range n.Runs {
				if int64(r.Start+r.Blocks)*layertree.BlockSize > int64(len(b)) {
					return fmt.Errorf("%s: run %+v outside of %d bytes", path, r, len(b))
				}
			}
			if !slices.IsSortedFunc(n.Xattrs, func(a, b layertree.Xattr) int { return strings.Compare(a.Name, b.Name) }) {
				return fmt.Errorf("%s: attributes are not sorted", path)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	})
}
