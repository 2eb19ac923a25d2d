package ext4_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/ext4"
	"github.com/stratavm/strata/internal/format/layertree"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

type entry = treetest.Entry

func write(t testing.TB, b []byte, o layertree.Options) (string, ext4.Info, error) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := ext4.WriteLayer(t.Context(), f, bytes.NewReader(b), o)
	return f.Name(), info, err
}

// TestChecked has e2fsck look at images whose metadata has unusual sizes.
func TestChecked(t *testing.T) {
	link := func(name, to string) entry { return entry{Name: name, Type: tar.TypeLink, Link: to} }
	var names, dirs, twice []entry
	for i := range 300 {
		names = append(names, entry{Name: fmt.Sprintf("d/%03d%s", i, strings.Repeat("n", 252-i%250))})
	}
	for i := range 2000 {
		dirs = append(dirs, entry{Name: fmt.Sprintf("d%d/", i)})
	}
	for i := range 50 {
		twice = append(twice, entry{Name: "again", Body: strings.Repeat("x", i*3000)})
	}
	for name, entries := range map[string][]entry{
		"nothing":                  nil,
		"directory of many blocks": names,
		"many directories":         dirs,
		"replaced again and again": twice,
		"lost+found of its own":    {{Name: "lost+found/", Mode: 0o755}, {Name: "lost+found/f", Body: "x"}},
		"deep":                     {{Name: strings.Repeat("d/", 2000) + "f"}},
		"hard links to all kinds": {{Name: "c", Type: tar.TypeChar, Major: 5, Minor: 300}, link("d", "c"),
			{Name: "s", Type: tar.TypeSymlink, Link: strings.Repeat("l", 100)}, link("t", "s")},
		"attributes in every place": {{Name: "a",
			PAX: map[string]string{"SCHILY.xattr.user.a": "1", "SCHILY.xattr.trusted.b": strings.Repeat("b", 60),
				"SCHILY.xattr.security.c": strings.Repeat("c", 3000), "SCHILY.xattr.user.empty": ""}}},
	} {
		t.Run(name, func(t *testing.T) {
			path, info, err := write(t, treetest.Tar(t, entries...), layertree.Options{})
			if err != nil {
				t.Fatal(err)
			}
			treetest.Run(t, "fsck.ext4", "-fn", path)
			if st, err := os.Stat(path); err != nil || st.Size() != info.Bytes || info.Bytes%4096 != 0 {
				t.Errorf("the file has %d bytes, the image %d, %v", st.Size(), info.Bytes, err)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	links := []entry{{Name: "f"}}
	for i := range 65_000 {
		links = append(links, entry{Name: fmt.Sprintf("l%d", i), Type: tar.TypeLink, Link: "f"})
	}
	for _, c := range []struct {
		name    string
		entries []entry
		want    error
		text    string
	}{
		{"attributes", []entry{{Name: "dir/file",
			PAX: map[string]string{"SCHILY.xattr.user.big": strings.Repeat("x", 5000)}}}, ext4.ErrXattrs, "/dir/file"},
		{"a damaged ACL", []entry{{Name: "f", PAX: map[string]string{"SCHILY.xattr.system.posix_acl_access": "short"}}}, nil,
			"posix_acl_access"},
		{"lost+found", []entry{{Name: "lost+found"}}, nil, "lost+found"},
		{"hard links", links, nil, "65001 hard links"},
	} {
		if _, _, err := write(t, treetest.Tar(t, c.entries...), layertree.Options{}); err == nil ||
			(c.want != nil && !errors.Is(err, c.want)) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v, want %v with %q", c.name, err, c.want, c.text)
		}
	}
}
