package erofs_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/stratavm/strata/internal/format/erofs"
	"github.com/stratavm/strata/internal/format/layertree"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

// TestImplied: a directory without an entry of its own has, in an index, the attributes of the
// directory below, as if the layer had been unpacked over it.
func TestImplied(t *testing.T) {
	base := treetest.Tar(t, entry{Name: "./", Mode: 0o711, UID: 5},
		entry{Name: "d/", Mode: 0o700, UID: 7, PAX: map[string]string{"SCHILY.xattr.user.k": "v"}},
		entry{Name: "d/e/", Mode: 0o1777, GID: 9}, entry{Name: "d/old"}, entry{Name: "file"})
	const root, d, e, made = "711 5:0 []", "700 7:0 [{user.k v}]", "1777 0:9 []", "755 0:0 []"
	for _, c := range []struct {
		name  string
		above [][]entry // lowest first
		want  map[string]string
	}{
		{"kept", [][]entry{{{Name: "d/e/f"}}}, map[string]string{"/": root, "/d": d, "/d/e": e}},
		{"kept below two", [][]entry{{{Name: "d/e/f"}}, {{Name: "d/e/g"}}}, map[string]string{"/": root, "/d": d, "/d/e": e}},
		{"an entry wins", [][]entry{{{Name: "./", Mode: 0o750}, {Name: "d/", Mode: 0o750, UID: 1}, {Name: "d/e/f"}}},
			map[string]string{"/": "750 0:0 []", "/d": "750 1:0 []", "/d/e": e}},
		{"an entry after its content wins", [][]entry{{{Name: "d/f"}, {Name: "d/", Mode: 0o750, UID: 1}}},
			map[string]string{"/d": "750 1:0 []"}},
		{"below an entry", [][]entry{{{Name: "n/f"}}, {{Name: "n/", Mode: 0o701}}, {{Name: "n/g"}}},
			map[string]string{"/n": "701 0:0 []"}},
		{"new", [][]entry{{{Name: "n/f"}}}, map[string]string{"/": root, "/n": made}},
		{"where a file was", [][]entry{{{Name: "file/f"}}}, map[string]string{"/file": made}},
		{"deleted and made again", [][]entry{{{Name: ".wh.d"}, {Name: "d/f"}}}, map[string]string{"/d": made, "/d/old": ""}},
		{"deleted, then made", [][]entry{{{Name: ".wh.d"}}, {{Name: "d/f"}}}, map[string]string{"/d": made, "/d/old": ""}},
		{"emptied", [][]entry{{{Name: "d/.wh..wh..opq"}, {Name: "d/f"}}},
			map[string]string{"/": root, "/d": d, "/d/old": "", "/d/e": ""}},
		{"all emptied", [][]entry{{{Name: ".wh..wh..opq"}, {Name: "d/f"}}},
			map[string]string{"/": root, "/d": made, "/file": ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			images := []string{image(t, base)}
			for _, l := range c.above {
				images = append([]string{image(t, treetest.Tar(t, l...))}, images...)
			}
			f, err := os.Open(disk(t, images))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			st, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			tree, err := erofs.Open(f, st.Size())
			if err != nil {
				t.Fatal(err)
			}
			got := make(map[string]string)
			if err := tree.Walk(func(path string, n *layertree.Node) error {
				got[path] = fmt.Sprintf("%o %d:%d %v", n.Mode&layertree.PermMask, n.UID, n.GID, n.Xattrs)
				if n.Implied {
					t.Errorf("%s is marked in the index, which has no layer below", path)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			for path, want := range c.want {
				if got[path] != want {
					t.Errorf("%s is %q, want %q", path, got[path], want)
				}
			}
		})
	}
}
