package layertree_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

// lower creates a layer that others lie over, from its outline.
func lower(t testing.TB, entries ...entry) layertree.Lower {
	t.Helper()
	var outline, data bytes.Buffer
	if _, err := layertree.FromTar(t.Context(), bytes.NewReader(treetest.Tar(t, entries...)), &data, 0,
		layertree.Options{Outline: &outline}); err != nil {
		t.Fatal(err)
	}
	left := int64(1 << 20)
	tree, err := layertree.ReadOutline(&outline, &left)
	if err != nil {
		t.Fatal(err)
	}
	return layertree.Lower{Tree: tree, Open: func(_ string, n *layertree.Node) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data.Bytes()[n.Runs[0].Start*layertree.BlockSize:][:n.Size])), nil
	}}
}

func sym(name, to string) entry  { return entry{Name: name, Type: tar.TypeSymlink, Link: to} }
func hard(name, to string) entry { return entry{Name: name, Type: tar.TypeLink, Link: to} }

// TestBelow: what a layer is over others, and that it is told apart from what it is by itself.
func TestBelow(t *testing.T) {
	usr := []entry{{Name: "usr/"}, {Name: "usr/lib/", Mode: 0o711, UID: 5}, {Name: "usr/lib/old", Body: "old"},
		sym("lib", "usr/lib"), sym("abs", "/usr/lib"), sym("up", "usr/lib/../../new"),
		sym("loop", "loop2"), sym("loop2", "loop"), sym("tofile", "usr/lib/old"),
		{Name: "file", Body: "from below", Mode: 0o640, UID: 9, PAX: map[string]string{"SCHILY.xattr.user.k": "v"}}}
	for _, c := range []struct {
		name  string
		below [][]entry // top first
		tar   []entry
		same  bool // as without the layers below
		want  string
	}{
		{"no implied directory", [][]entry{usr}, []entry{{Name: "lib/"}, {Name: "lib/x"}}, true,
			"/ dir 3\n/lib dir 2\n/lib/x file 1\n"},
		{"through a link", [][]entry{usr}, []entry{{Name: "lib/x"}}, false,
			"/ dir 3\n/usr dir 3\n/usr/lib dir 2\n/usr/lib/x file 1\n"},
		{"through an absolute link", [][]entry{usr}, []entry{{Name: "abs/sub/x"}}, false,
			"/ dir 3\n/usr dir 3\n/usr/lib dir 3\n/usr/lib/sub dir 2\n/usr/lib/sub/x file 1\n"},
		{"to what is not there yet", [][]entry{usr}, []entry{{Name: "up/x"}}, false, "/ dir 3\n/new dir 2\n/new/x file 1\n"},
		{"beside entries of the same directory", [][]entry{usr},
			[]entry{{Name: "lib/x", Body: "1"}, {Name: "usr/lib/"}, {Name: "usr/lib/y"}}, false,
			"/ dir 3\n/usr dir 3\n/usr/lib dir 2\n/usr/lib/x file 1\n/usr/lib/y file 1\n"},
		{"an entry where the link leads to wins", [][]entry{usr}, []entry{{Name: "lib/x/y"}, {Name: "usr/lib/x"}}, false,
			"/ dir 3\n/usr dir 3\n/usr/lib dir 2\n/usr/lib/x file 1\n"},
		{"a whiteout through a link", [][]entry{usr}, []entry{{Name: "lib/.wh.old"}}, false,
			"/ dir 3\n/usr dir 3\n/usr/lib dir 2\n/usr/lib/old whiteout 1\n"},
		{"opaque through a link", [][]entry{usr}, []entry{{Name: "lib/.wh..wh..opq"}, {Name: "lib/x"}}, false,
			"/ dir 3\n/usr dir 3\n/usr/lib opaque 2\n/usr/lib/x file 1\n"},
		{"the link is whited out", [][]entry{usr}, []entry{{Name: ".wh.lib"}, {Name: "lib/x"}}, true,
			"/ dir 3\n/lib opaque 2\n/lib/x file 1\n"},
		{"the link is behind an opaque root", [][]entry{usr}, []entry{{Name: ".wh..wh..opq"}, {Name: "lib/x"}}, true,
			"/ opaque 3\n/lib dir 2\n/lib/x file 1\n"},
		{"the link is removed in between", [][]entry{{{Name: ".wh.lib"}}, usr}, []entry{{Name: "lib/x"}}, true,
			"/ dir 3\n/lib dir 2\n/lib/x file 1\n"},
		{"the link is replaced in between", [][]entry{{{Name: "lib/"}}, usr}, []entry{{Name: "lib/x"}}, true,
			"/ dir 3\n/lib dir 2\n/lib/x file 1\n"},
		{"a link over a link", [][]entry{{sym("usr/lib", "/opt")}, usr}, []entry{{Name: "lib/x"}}, false,
			"/ dir 3\n/opt dir 2\n/opt/x file 1\n"},
		{"an own link to one below", [][]entry{usr}, []entry{sym("l", "lib"), {Name: "l/x"}}, false,
			"/ dir 3\n/l link 1\n/usr dir 3\n/usr/lib dir 2\n/usr/lib/x file 1\n"},
		{"links in a circle", [][]entry{usr}, []entry{{Name: "loop/x"}}, true, "/ dir 3\n/loop dir 2\n/loop/x file 1\n"},
		{"a link to a file", [][]entry{usr}, []entry{{Name: "tofile/x"}}, true, "/ dir 3\n/tofile dir 2\n/tofile/x file 1\n"},
		{"whiteouts of nothing", [][]entry{usr},
			[]entry{{Name: "var/cache/.wh..wh..opq"}, {Name: "n/.wh.x"}, {Name: "m/"}, {Name: "m/o/.wh.y"}}, false,
			"/ dir 3\n/m dir 2\n"},
		{"whiteouts in a directory of its own", [][]entry{usr}, []entry{{Name: "n/"}, {Name: "n/.wh.x"}, {Name: "n/y"}},
			false, "/ dir 3\n/n dir 2\n/n/y file 1\n"},
		{"whiteouts over nothing at all", nil, []entry{{Name: ".wh.x"}, {Name: "n/.wh.x"}, {Name: "m/.wh.x"}, {Name: "m/y"}},
			false, "/ dir 3\n/m dir 2\n/m/y file 1\n"},
		{"whiteouts below a file", [][]entry{usr}, []entry{{Name: "file/.wh.x"}}, false, "/ dir 2\n"},
		{"whiteouts of what is there", [][]entry{usr}, []entry{{Name: "usr/lib/.wh.old"}}, true,
			"/ dir 3\n/usr dir 3\n/usr/lib dir 2\n/usr/lib/old whiteout 1\n"},
		{"a hard link to a file below", [][]entry{usr}, []entry{hard("again", "file")}, false, "/ dir 2\n/again file 2\n"},
		{"hard links in a row", [][]entry{usr}, []entry{hard("a", "b"), hard("b", "d/c"), hard("d/c", "usr/lib/old")}, false,
			"/ dir 4\n/a file 4\n/d dir 2\n/usr dir 3\n/usr/lib dir 2\n"},
		{"a hard link through a link", [][]entry{usr}, []entry{hard("h", "lib/old")}, false,
			"/ dir 3\n/h file 2\n/usr dir 3\n/usr/lib dir 2\n"},
		{"a hard link through a link, beside others", [][]entry{usr}, []entry{{Name: "lib/x"}, hard("lib/h", "lib/old")},
			false,
			"/ dir 3\n/usr dir 3\n/usr/lib dir 2\n/usr/lib/h file 2\n/usr/lib/x file 1\n"},
		{"a hard link to a link", [][]entry{usr}, []entry{hard("h", "lib")}, false, "/ dir 2\n/h link 2\n"},
		{"a hard link where a whiteout is", [][]entry{usr}, []entry{{Name: ".wh.again"}, hard("again", "file")}, false,
			"/ dir 2\n/again file 2\n"},
		{"an entry takes the place of the file", [][]entry{usr}, []entry{hard("again", "file"), {Name: "file"}}, true,
			"/ dir 2\n/again file 2\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			below := &layertree.Below{}
			for _, l := range c.below {
				below.Layers = append(below.Layers, lower(t, l...))
			}
			b := treetest.Tar(t, c.tar...)
			tree, err := read(t, b, layertree.Options{Below: below})
			if err != nil {
				t.Fatal(err)
			}
			if got := list(t, tree); got != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
			alone, err := read(t, b, layertree.Options{})
			changed := errors.Is(err, layertree.ErrLink)
			if err == nil {
				changed, err = alone.Follow(below)
				if got := list(t, alone); err == nil && got != c.want {
					t.Errorf("settled later it is\n%s", got)
				}
			}
			if changed == c.same || err != nil && !changed {
				t.Errorf("it was changed: %v, %v", changed, err)
			}
		})
	}
}

// TestCopiedUp: a file of a layer below comes with all that it is.
func TestCopiedUp(t *testing.T) {
	body := strings.Repeat("content ", 1000)
	below := &layertree.Below{Layers: []layertree.Lower{lower(t, entry{Name: "d/", Mode: 0o750, UID: 3},
		entry{Name: "d/f", Body: body, Mode: 0o4751, UID: 7, GID: 8, PAX: map[string]string{"SCHILY.xattr.user.k": "v"}})}}
	var out bytes.Buffer
	b := treetest.Tar(t, entry{Name: "own", Body: "own"}, hard("l", "d/f"))
	tree, err := layertree.FromTar(t.Context(), bytes.NewReader(b), &out, 0, layertree.Options{Below: below})
	if err != nil {
		t.Fatal(err)
	}
	n := tree.Root.Child("l")
	if n != tree.Root.Child("d").Child("f") || n.Mode != layertree.TypeRegular|0o4751 || n.UID != 7 || n.GID != 8 ||
		n.Sec == 0 || n.Size != int64(len(body)) {
		t.Errorf("it is %+v", n)
	}
	if v, _ := n.Xattr("user.k"); v != "v" {
		t.Errorf("its attribute is %q", v)
	}
	if got := out.Bytes()[n.Runs[0].Start*layertree.BlockSize:][:n.Size]; string(got) != body {
		t.Error("its content differs")
	}
	if d := tree.Root.Child("d"); d.Mode&layertree.PermMask != 0o750 || d.UID != 3 || !d.Implied {
		t.Errorf("its directory is %+v", d)
	}
}

// TestBelowErrors: what cannot be, and what would take too much.
func TestBelowErrors(t *testing.T) {
	below := &layertree.Below{Layers: []layertree.Lower{lower(t, entry{Name: "d/"}, entry{Name: "f", Body: "12345"},
		sym("s", strings.Repeat("n/", 2000)))}}
	for name, c := range map[string]struct {
		tar  []entry
		o    layertree.Options
		want error
	}{
		"nothing there":  {tar: []entry{hard("l", "none")}, want: layertree.ErrLink},
		"behind nothing": {tar: []entry{hard("l", "none/f")}, want: layertree.ErrLink},
		"whited out":     {tar: []entry{{Name: ".wh.f"}, hard("l", "f")}, want: layertree.ErrLink},
		"a directory":    {tar: []entry{hard("l", "d")}, want: layertree.ErrInvalid},
		"too large":      {tar: []entry{hard("l", "f")}, o: layertree.Options{MaxBytes: 4}, want: layertree.ErrTooLarge},
		"in a circle":    {tar: []entry{hard("a", "b"), hard("b", "a")}, want: layertree.ErrLink},
	} {
		c.o.Below = below
		if _, err := read(t, treetest.Tar(t, c.tar...), c.o); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	var outline bytes.Buffer
	if _, err := read(t, treetest.Tar(t, entry{Name: "d/f"}), layertree.Options{Outline: &outline}); err != nil {
		t.Fatal(err)
	}
	left := int64(500)
	if _, err := layertree.ReadOutline(bytes.NewReader(outline.Bytes()), &left); !errors.Is(err, layertree.ErrTooLarge) {
		t.Errorf("an outline beyond the limit: %v", err)
	}
	for n := range outline.Len() {
		left = 1 << 20
		if _, err := layertree.ReadOutline(bytes.NewReader(outline.Bytes()[:n]), &left); !errors.Is(err,
			layertree.ErrOutline) {
			t.Fatalf("an outline that was cut off after %d bytes: %v", n, err)
		}
	}
}

func FuzzReadOutline(f *testing.F) {
	var outline bytes.Buffer
	if _, err := read(f, treetest.Tar(f, entry{Name: "d/f", Body: "x"}, hard("l", "d/f")),
		layertree.Options{Outline: &outline}); err != nil {
		f.Fatal(err)
	}
	f.Add(outline.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		left := int64(1 << 20)
		tree, err := layertree.ReadOutline(bytes.NewReader(b), &left)
		if err != nil {
			return
		}
		if err := tree.Walk(func(path string, n *layertree.Node) error {
			if !n.IsDir() && n.Len() > 0 {
				return fmt.Errorf("%s has entries", path)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	})
}
