package store_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/store"
)

type tarEntry = treetest.Entry

func symlink(name, to string) tarEntry {
	return tarEntry{Name: name, Type: tar.TypeSymlink, Link: to}
}
func hardLink(name, to string) tarEntry { return tarEntry{Name: name, Type: tar.TypeLink, Link: to} }

// stacks are layers, the base first, of which the upper ones depend on the lower ones.
var stacks = map[string][][]tarEntry{
	"implied over a link": {{{Name: "t/"}, {Name: "t/k", Body: "k"}, symlink("s", "t")},
		{{Name: "s/n", Body: "n"}}},
	"implied over a deep link": {{{Name: "opt/"}, {Name: "opt/v1/", Mode: 0o711}, {Name: "opt/v1/k"},
		symlink("opt/cur", "/opt/v1")}, {{Name: "opt/cur/sub/n", Body: "n"}}},
	"implied over two links": {{{Name: "usr/"}, {Name: "usr/lib/"}, symlink("lib", "usr/lib"),
		symlink("lib64", "lib")}, {{Name: "lib64/ld.so", Body: "ld"}},
		{{Name: "lib/.wh.ld.so"}, {Name: "lib64/x", Body: "x"}}},
	"a whiteout through a link": {{{Name: "t/"}, {Name: "t/k"}, {Name: "t/j"}, symlink("s", "t")},
		{{Name: "s/.wh.k"}}},
	"opaque through a link": {{{Name: "target/"}, {Name: "target/keep"}, symlink("link", "/target")},
		{{Name: "link/.wh..wh..opq"}, {Name: "link/new", Body: "n"}}},
	"an opaque entry over a link": {{{Name: "target/"}, {Name: "target/keep"}, symlink("link", "/target")},
		{{Name: "link/"}, {Name: "link/.wh..wh..opq"}, {Name: "link/new", Body: "n"}}},
	"an entry over a link": {{{Name: "t/"}, {Name: "t/k"}, symlink("s", "t")}, {{Name: "s/"}, {Name: "s/n"}}},
	"opaque in nothing":    {{{Name: "k"}}, {{Name: "var/cache/.wh..wh..opq"}}},
	"a directory and what is in it": {{{Name: "test/"}, {Name: "test/test"}},
		{{Name: ".wh.test"}, {Name: "test/.wh.test"}}},
	"a hard link below": {{{Name: "data", Body: strings.Repeat("data", 50_000) + strings.Repeat("\x00", 300_000) + "end",
		Mode: 0o640, UID: 5, PAX: map[string]string{"SCHILY.xattr.user.k": "v"}}},
		{hardLink("again", "data")}},
	"a hard link through a link": {{{Name: "t/"}, {Name: "t/k", Body: "k"}, symlink("s", "t")},
		{hardLink("h", "s/k")}},
	"a hard link two below": {{{Name: "t/", Mode: 0o700, GID: 9}, {Name: "t/k", Body: "k"}}, {{Name: "other"}},
		{hardLink("t/h", "t/k"), {Name: "t/n", Body: "n"}}},
	"a hard link to a changed file": {{{Name: "t/"}, {Name: "t/k", Body: "old"}},
		{{Name: "t/"}, {Name: "t/k", Body: "new"}}, {hardLink("h", "t/k")}},
	"a hard link whose target is replaced": {{{Name: "k", Body: "old"}, hardLink("h", "k")}, {{Name: "k", Body: "new"}}},
	"a hard link to a copied file":         {{{Name: "k", Body: "k"}}, {hardLink("h", "k")}, {hardLink("i", "h")}},
	"a link that an upper one hides": {{{Name: "usr/"}, {Name: "usr/lib/"}, symlink("lib", "usr/lib")},
		{{Name: "lib/"}, {Name: "lib/own"}}, {{Name: "lib/x"}}},
}

// whiteouts are layers that take things away, in all the ways that tools have written it.
var whiteouts = map[string][][]tarEntry{
	"no opaque mark": {{{Name: "e/"}, {Name: "e/passwd", Body: "p"}}, {{Name: "e/.wh..wh..opqX"}}},
	"made again two layers up": {{{Name: "d/"}, {Name: "d/old"}}, {{Name: ".wh.d"}},
		{{Name: "d/"}, {Name: "d/new"}}},
	"made again deep": {{{Name: "a/"}, {Name: "a/b/"}, {Name: "a/b/foo"}}, {{Name: ".wh.a"}},
		{{Name: "a/"}, {Name: "a/b/"}}},
	"made again by what is in it": {{{Name: "a/"}, {Name: "a/b/"}, {Name: "a/b/foo"}}, {{Name: ".wh.a"}},
		{{Name: "a/b/bar"}}},
	"of a name that is below too": {{{Name: "test"}, {Name: "r/"}, {Name: "r/test"}}, {{Name: ".wh.test"}}},
	"before its replacement": {{{Name: "a/"}, {Name: "a/b/"}, {Name: "a/b/old"}, {Name: "a/x"}},
		{{Name: "a/.wh.b"}, {Name: "a/b/c/d"}}},
	"a directory becomes a link": {{{Name: "a/"}, {Name: "a/a/"}, {Name: "b/"}, {Name: "a/a/f"}, {Name: "b/keep"}},
		{{Name: "a/.wh.a"}, symlink("a", "b"), {Name: "b/"}}},
	"a directory becomes a link first": {{{Name: "a/"}, {Name: "a/a/"}, {Name: "b/"}, {Name: "a/a/f"}, {Name: "b/a"}},
		{symlink("a", "b"), {Name: "a/.wh.a"}, {Name: "b/"}}},
	"beside an opaque mark": {{{Name: "d/"}, {Name: "d/x"}, {Name: "d/y"}},
		{{Name: "d/"}, {Name: "d/.wh..wh..opq"}, {Name: "d/.wh.x"}, {Name: "d/z"}}},
	"below an opaque mark": {{{Name: "d/"}, {Name: "d/e/"}, {Name: "d/e/x"}},
		{{Name: "d/"}, {Name: "d/.wh..wh..opq"}, {Name: "d/e/"}, {Name: "d/e/.wh.x"}, {Name: "d/e/y"}}},
	"beside a directory that replaces another": {{{Name: "d/"}, {Name: "d/x"}},
		{{Name: ".wh.d"}, {Name: "d/"}, {Name: "d/.wh.x"}, {Name: "d/y"}}},
	"far below what replaces another": {{{Name: "d/"}, {Name: "d/e/"}, {Name: "d/e/f/"}, {Name: "d/e/f/h"},
		{Name: "d/e/g"}},
		{{Name: ".wh.d"}, {Name: "d/e/f/.wh.h"}, {Name: "d/e/.wh.g"}, {Name: "d/e/i/j"}}},
	"of a link beside an opaque mark": {{{Name: "u/"}, {Name: "u/doc/"}, {Name: "u/doc/curl/"}, {Name: "u/doc/curl/old"}},
		{{Name: "u/doc/curl/"}, {Name: "u/doc/curl/.wh..wh..opq"}, symlink("u/doc/curl/NEWS", "../x"),
			{Name: "u/doc/curl/.wh.NEWS"}}},
	"by a hard link":             {{{Name: "a"}, {Name: "b"}, {Name: "c"}}, {{Name: ".wh.a"}, hardLink(".wh.b", ".wh.a")}},
	"that is a directory":        {{{Name: "d/"}, {Name: "d/f"}}, {{Name: ".wh.d/"}}},
	"that is a link":             {{{Name: "f"}}, {symlink(".wh.f", "nowhere")}},
	"in the middle of a name":    {{{Name: "a.wh.b"}, {Name: "x.wh./"}, {Name: "x.wh./y"}}, {{Name: "c"}}},
	"a file becomes a directory": {{{Name: "p"}}, {{Name: "p/"}, {Name: "p/q"}}},
	"no permissions": {{{Name: "z/", Mode: treetest.NoMode}, {Name: "z/f", Mode: treetest.NoMode}},
		{{Name: "z/", Mode: treetest.NoMode}, {Name: "z/g"}}},
	"a directory becomes a file": {{{Name: "p/"}, {Name: "p/r/"}, {Name: "p/r/q"}}, {{Name: "p"}}},
}

// nothings are layers that take away what no layer below them has: overlayfs lists a whiteout in a directory that only
// one layer has.
var nothings = map[string][][]tarEntry{
	"in the only layer": {{{Name: ".wh.gone"}, {Name: "d/"}, {Name: "d/.wh.x"}, {Name: "d/k"}, {Name: "d/e/.wh.y"},
		{Name: "i/.wh.z"}}},
	"in the base": {{{Name: "d/"}, {Name: "d/.wh.x"}, {Name: "d/e/"}, {Name: "d/e/.wh.y"}}, {{Name: "d/"}, {Name: "d/n"}}},
	"in a directory of its own": {{{Name: "k"}, {Name: "d/"}},
		{{Name: "d/e/"}, {Name: "d/e/.wh.x"}, {Name: "d/e/n"}, {Name: "f/.wh.y"}, {Name: "f/n"}}},
	"in a directory over a file": {{{Name: "d"}}, {{Name: "d/"}, {Name: "d/.wh.x"}, {Name: "d/n"}}},
	"in a directory that was taken away": {{{Name: "d/"}, {Name: "d/x"}}, {{Name: ".wh.d"}},
		{{Name: "d/"}, {Name: "d/.wh.x"}, {Name: "d/n"}}},
	"of some of several": {{{Name: "d/"}, {Name: "d/x"}}, {{Name: "d/"}, {Name: "d/.wh.x"}, {Name: "d/.wh.y"}}},
	"over what is gone":  {{{Name: "d/"}, {Name: "d/x"}}, {{Name: "d/.wh.x"}}, {{Name: "d/"}, {Name: "d/.wh.x"}}},
}

// TestWhiteoutsAsUmoci: what layers take away is away in all formats as it is when umoci unpacks them.
func TestWhiteoutsAsUmoci(t *testing.T) {
	treetest.NeedRoot(t, "to mount")
	_, err := exec.LookPath("umoci")
	treetest.Need(t, err == nil, "umoci", "install the package umoci")
	all := maps.Clone(whiteouts)
	maps.Copy(all, nothings)
	for name, stack := range all {
		t.Run(name, func(t *testing.T) {
			want, implied := unpacked(t, stack)
			compareBelow(t, stack, hostViews, []store.Format{erofs, vhd, {File: layerdir.EROFS, Verity: true}}, want, implied)
		})
	}
}

// TestClosedDirectoryBelow: a directory without permissions stays closed under a layer that has no entry for it, where
// there is an index.
func TestClosedDirectoryBelow(t *testing.T) {
	treetest.NeedRoot(t, "to mount")
	_, err := exec.LookPath("umoci")
	treetest.Need(t, err == nil, "umoci", "install the package umoci")
	stack := [][]tarEntry{{{Name: "z/", Mode: treetest.NoMode}, {Name: "z/f", Mode: treetest.NoMode}}, {{Name: "z/g"}}}
	want, implied := unpacked(t, stack)
	if !strings.HasPrefix(want["z"], "mode=40000 ") || !strings.HasPrefix(want["z/f"], "mode=100000 ") {
		t.Fatalf("umoci has z as %q, z/f as %q", want["z"], want["z/f"])
	}
	withIndex := slices.IndexFunc(hostViews, func(v view) bool { return v.name == "index" })
	compareBelow(t, stack, hostViews[withIndex:withIndex+1], []store.Format{erofs}, want, implied)
}

// TestFileBelowDirectory: a layer that has a file in a directory without an entry, where a layer below has a file,
// hides the latter. Umoci refuses it.
func TestFileBelowDirectory(t *testing.T) {
	treetest.NeedRoot(t, "to mount")
	s := open(t, t.TempDir(), store.Options{})
	img := mustImport(t, s, store.Request{Name: "x", Digest: "x", Formats: []store.Format{erofs, vhd},
		Layers: []store.Layer{layer(treetest.Tar(t, tarEntry{Name: "p", Body: "p"})),
			layer(treetest.Tar(t, tarEntry{Name: "p/q", Body: "q"}))}})
	for _, v := range hostViews {
		folders, err := s.Folders(img, v.format)
		if err != nil {
			t.Fatal(err)
		}
		got := v.list(t, folders)
		if !strings.HasPrefix(got["p"], "mode=40755 ") || !strings.Contains(got["p/q"], " size=1 ") {
			t.Errorf("%s: p is %q, p/q is %q", v.name, got["p"], got["p/q"])
		}
	}
}

// TestBelowAsUmoci: what depends on the layers below comes out in all formats as umoci unpacks it.
func TestBelowAsUmoci(t *testing.T) {
	treetest.NeedRoot(t, "to mount")
	_, err := exec.LookPath("umoci")
	treetest.Need(t, err == nil, "umoci", "install the package umoci")
	for name, stack := range stacks {
		t.Run(name, func(t *testing.T) {
			want, implied := unpacked(t, stack)
			compareBelow(t, stack, hostViews, []store.Format{erofs, vhd, {File: layerdir.EROFS, Verity: true}}, want, implied)
		})
	}
}

// TestBelowInUserNamespace: the same of directory trees, which only user namespaces have.
func TestBelowInUserNamespace(t *testing.T) {
	if !treetest.InUserNamespace(t, 65536) {
		return
	}
	_, err := exec.LookPath("umoci")
	treetest.Need(t, err == nil, "umoci", "install the package umoci")
	trees := store.Format{File: layerdir.Tree}
	overlay := view{name: "overlay of trees", format: trees, list: func(t *testing.T, folders []string) map[string]string {
		var lower []string
		for _, dir := range folders {
			lower = append(lower, filepath.Join(dir, layerdir.Tree.FileName()))
		}
		root := t.TempDir()
		treetest.Run(t, "mount", "-t", "overlay", "overlay", "-o", "ro,userxattr,lowerdir="+
			strings.Join(append(lower, t.TempDir()), ":"), root)
		t.Cleanup(func() { treetest.Run(t, "umount", root) })
		return treetest.Describe(t, root)
	}}
	all := maps.Clone(stacks)
	maps.Copy(all, nothings)
	for name, stack := range all {
		t.Run(name, func(t *testing.T) {
			want, implied := unpacked(t, stack)
			compareBelow(t, stack, []view{overlay}, []store.Format{trees}, want, implied)
		})
	}
}

// compareBelow imports layers and compares what each view shows of them with what umoci unpacked.
func compareBelow(t *testing.T, stack [][]tarEntry, views []view, formats []store.Format, want map[string]string,
	implied map[string]bool) {
	t.Helper()
	s := open(t, t.TempDir(), store.Options{})
	r := store.Request{Name: "x", Digest: "x", Formats: formats}
	for _, l := range stack {
		r.Layers = append(r.Layers, layer(treetest.Tar(t, l...)))
	}
	img := mustImport(t, s, r)
	whole(t, s)
	for _, v := range views {
		folders, err := s.Folders(img, v.format)
		if err != nil {
			t.Fatal(err)
		}
		got, want := v.list(t, folders), maps.Clone(want)
		for _, d := range []map[string]string{want, got} {
			delete(d, ".")
			delete(d, "lost+found")
		}
		w, g := treetest.WithoutTimes(want, implied), treetest.WithoutTimes(got, implied)
		if d := treetest.Diff(withoutLinks(w), withoutLinks(g)); d != "" {
			t.Errorf("%s: %s", v.name, d)
		}
	}
}

// withoutLinks leaves out how many names a file has where it is one or two: overlayfs shows the count of the layer.
func withoutLinks(d map[string]string) map[string]string {
	out := maps.Clone(d)
	for p, line := range out {
		if p == "k" || p == "t/k" || p == "h" || p == "i" {
			for _, n := range []string{" links=2", " links=3"} {
				line = strings.Replace(line, n, " links=1", 1)
			}
			out[p] = line
		}
	}
	return out
}

// unpacked is what umoci makes of layers, and the directories without an entry.
func unpacked(t *testing.T, stack [][]tarEntry) (tree map[string]string, implied map[string]bool) {
	t.Helper()
	dir := t.TempDir()
	layout := filepath.Join(dir, "layout")
	treetest.Run(t, "umoci", "init", "--layout", layout)
	treetest.Run(t, "umoci", "new", "--image", layout+":x")
	implied = map[string]bool{}
	for i, l := range stack {
		b := treetest.Tar(t, l...)
		maps.Copy(implied, treetest.Implied(t, bytes.NewReader(b)))
		path := filepath.Join(dir, fmt.Sprintf("%d.tar", i))
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		treetest.Run(t, "umoci", "raw", "add-layer", "--image", layout+":x", path)
	}
	for _, d := range []string{"t", "usr/lib", "opt/v1", "opt/v1/sub", "target"} {
		implied[d] = true // what is put in by way of a link changes the time, or makes the directory
	}
	treetest.Run(t, "umoci", "unpack", "--image", layout+":x", filepath.Join(dir, "bundle"))
	return treetest.Describe(t, filepath.Join(dir, "bundle", "rootfs")), implied
}

// TestChained: a layer is served to another chain when it is the same there, and made again only when it is not.
func TestChained(t *testing.T) {
	base := func(to string) store.Layer {
		return layer(treetest.Tar(t, tarEntry{Name: "usr/"}, tarEntry{Name: "usr/lib/"}, tarEntry{Name: "opt/"},
			symlink("lib", to), tarEntry{Name: "f", Body: to}))
	}
	upper := layer(treetest.Tar(t, tarEntry{Name: "lib/x", Body: "x"}))
	linked := layer(treetest.Tar(t, hardLink("g", "f")))
	plain := layer(treetest.Tar(t, tarEntry{Name: "usr/lib/y", Body: "y"}, tarEntry{Name: "n/"}, tarEntry{Name: "n/z"}))
	var n atomic.Int32
	s := open(t, t.TempDir(), store.Options{Convert: counting(&n)})
	imp := func(name string, layers ...store.Layer) store.Image {
		t.Helper()
		img := mustImport(t, s, store.Request{Name: name, Digest: name, Layers: layers})
		whole(t, s)
		return img
	}
	file := func(img store.Image) string {
		t.Helper()
		folders, err := s.Folders(img, erofs)
		if err != nil {
			t.Fatal(err)
		}
		return layerFile(t, s, folders[0])
	}
	made := func(want int32) {
		t.Helper()
		if got := n.Swap(0); got != want {
			t.Errorf("%d conversions, want %d", got, want)
		}
	}
	toUsr, toOpt, toNothing := base("usr/lib"), base("opt"), layer(treetest.Tar(t, tarEntry{Name: "etc/"}))
	a := imp("a", toUsr, upper)
	made(3) // the base, and the other by itself and over it
	b := imp("b", toOpt, upper)
	made(2)
	c := imp("c", toNothing, upper)
	made(1)
	d := imp("d", toUsr, plain)
	made(1)
	e := imp("e", toOpt, plain)
	made(0)
	if file(a) == file(b) || file(a) == file(c) || file(b) == file(c) {
		t.Error("a layer was served to a chain over which it is another one")
	}
	if file(d) != file(e) {
		t.Error("a layer that is the same was made twice")
	}
	imp("a again", toUsr, upper)
	made(0)

	// A base is another one where it has whiteouts.
	white := layer(treetest.Tar(t, tarEntry{Name: "etc/"}, tarEntry{Name: "etc/.wh.x"}))
	w := imp("whiteouts alone", white)
	made(2)
	o := imp("whiteouts over something", toNothing, white)
	made(0)
	if file(w) == file(o) {
		t.Error("a base has the whiteouts that it has over other layers")
	}
	imp("whiteouts alone, again", white)
	made(0)
	imp("a in more layers", toUsr, upper, plain)
	made(0)
	imp("linked", toUsr, linked)
	imp("linked elsewhere", toOpt, linked)
	n.Store(0)
	imp("linked again", toOpt, linked)
	made(0)

	// A layer that comes twice is mounted once, but what lies between has both in its order.
	twice := imp("twice", toUsr, upper, toUsr)
	if folders, err := s.Folders(twice, erofs); err != nil || len(folders) != 2 {
		t.Errorf("%q, %v", folders, err)
	}
	if under := imp("under", upper, toUsr); filepath.Base(file(under)) == "" {
		t.Error("no file")
	}

	// Damage is found and repaired, and what no image needs goes.
	damaged := file(a)
	if err := os.WriteFile(filepath.Join(filepath.Dir(damaged), "outline"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	report, err := s.Check(t.Context())
	if err != nil || len(report.Problems) != 1 {
		t.Fatalf("%+v, %v", report.Problems, err)
	}
	if err := s.Repair(t.Context(), report, func(_ context.Context, img store.Image) error {
		_, err := s.Import(t.Context(), store.Request{Name: img.Name, Digest: img.Digest, Layers: map[string][]store.Layer{
			"a": {toUsr, upper}, "a again": {toUsr, upper}, "a in more layers": {toUsr, upper, plain}}[img.Name]})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	whole(t, s)
	images, err := s.Images()
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range images {
		if err := s.Remove(t.Context(), img.Name); err != nil {
			t.Fatal(err)
		}
	}
	gc(t, s)
	if l, c := objects(t, s); l+c != 0 {
		t.Errorf("%d layers and %d chains are left", l, c)
	}
}
