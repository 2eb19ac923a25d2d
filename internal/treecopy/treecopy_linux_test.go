package treecopy

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, to, path string) {
	t.Helper()
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}

// TestStaysInRoot: links of a container lead inside its root, up and absolute ones too.
func TestStaysInRoot(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	write(t, outside+"/secret", "secret")
	write(t, root+"/data/x", "inside")
	link(t, "/data", root+"/abs")
	link(t, "../../../../data", root+"/up")
	link(t, outside, root+"/out")
	for _, name := range []string{"/abs/x", "up/x", "/data/../../data/x"} {
		var b bytes.Buffer
		if err := PackFrom(&b, root, name, "x"); err != nil || !strings.Contains(b.String(), "inside") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"/out/secret", "/none/x"} {
		var b bytes.Buffer
		if err := PackFrom(&b, root, name, "x"); !errors.Is(err, fs.ErrNotExist) || strings.Contains(b.String(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, want := range map[string]string{"/abs": Link, "/data": Folder, "/data/x": File, "/": Folder,
		"/out/secret": Absent} {
		if got, err := Stat(root, name, false); got != want || err != nil {
			t.Errorf("%s: %s, %v; want %s", name, got, err, want)
		}
	}
	if got, err := Stat(root, "/abs", true); got != Folder || err != nil {
		t.Errorf("followed: %s, %v", got, err)
	}
}

// TestHostileTar: nothing of a tar comes to lie outside of the folder that it is for.
func TestHostileTar(t *testing.T) {
	type entry = tar.Header
	for name, entries := range map[string][]entry{
		"up":               {{Name: "../x", Typeflag: tar.TypeReg}},
		"absolute":         {{Name: "/x", Typeflag: tar.TypeReg}},
		"through a link":   {{Name: "l", Linkname: "OUT", Typeflag: tar.TypeSymlink}, {Name: "l/x", Typeflag: tar.TypeReg}},
		"through links up": {{Name: "l", Linkname: "..", Typeflag: tar.TypeSymlink}, {Name: "l/x", Typeflag: tar.TypeReg}},
		"folder by a link": {{Name: "l", Linkname: "OUT", Typeflag: tar.TypeSymlink}, {Name: "l", Typeflag: tar.TypeDir}},
		"hard link":        {{Name: "h", Linkname: "../secret", Typeflag: tar.TypeLink}},
		"hard link by one": {{Name: "l", Linkname: "OUT/secret", Typeflag: tar.TypeSymlink},
			{Name: "h", Linkname: "l", Typeflag: tar.TypeLink}},
		"itself": {{Name: ".", Typeflag: tar.TypeReg}},
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			write(t, base+"/secret", "secret")
			into := filepath.Join(base, "into")
			if err := os.Mkdir(into, 0o755); err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, e := range entries {
				e.Mode, e.Linkname = 0o644, strings.ReplaceAll(e.Linkname, "OUT", base)
				if err := w.WriteHeader(&e); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if err := UnpackInto(&b, into, "/", Ours, func(string, string) {}); err == nil {
				t.Error("it was unpacked")
			}
			left, err := os.ReadDir(base)
			if err != nil || len(left) != 2 {
				t.Errorf("outside: %v, %v", left, err)
			}
		})
	}
}

func tarOf(t *testing.T, entries []tar.Header) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Mode = 0o644
		if e.Typeflag == tar.TypeDir {
			e.Mode = 0o755
		}
		err := w.WriteHeader(&e)
		if _, werr := w.Write(make([]byte, e.Size)); errors.Join(err, werr) != nil {
			t.Fatal(errors.Join(err, werr))
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// TestOnlyWhatWasAskedFor: who makes a tar says nothing of what lies beside that which is copied.
func TestOnlyWhatWasAskedFor(t *testing.T) {
	dir := tar.Header{Name: "x", Typeflag: tar.TypeDir}
	file := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg, Size: 3} }
	link := func(name, to string, kind byte) tar.Header {
		return tar.Header{Name: name, Linkname: to, Typeflag: kind}
	}
	for name, tt := range map[string]struct {
		entries []tar.Header
		ok      bool
	}{
		"a file":               {[]tar.Header{file("x")}, true},
		"a folder":             {[]tar.Header{dir, file("x/y"), link("x/z", "x/y", tar.TypeLink)}, true},
		"a link":               {[]tar.Header{link("x", "mine", tar.TypeSymlink)}, true},
		"beside a file":        {[]tar.Header{file("x"), file("mine")}, false},
		"beside a folder":      {[]tar.Header{dir, file("x/y"), file("new")}, false},
		"instead of it":        {[]tar.Header{file("xx")}, false},
		"up":                   {[]tar.Header{dir, file("x/../mine")}, false},
		"no folder before":     {[]tar.Header{file("x/y")}, false},
		"through a link":       {[]tar.Header{link("x", ".", tar.TypeSymlink), file("x/mine")}, false},
		"through a link below": {[]tar.Header{dir, link("x/l", "..", tar.TypeSymlink), file("x/l/mine")}, false},
		"the folder itself":    {[]tar.Header{{Name: ".", Typeflag: tar.TypeDir}}, false},
		"a hard link to it":    {[]tar.Header{link("x", "mine", tar.TypeLink)}, false},
		"a hard link below":    {[]tar.Header{dir, link("x/h", "mine", tar.TypeLink)}, false},
		"the link's name":      {[]tar.Header{dir, link("mine", "x/y", tar.TypeLink)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			into := t.TempDir()
			write(t, into+"/mine", "mine")
			root, err := os.OpenRoot(into)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			err = Unpack(tarOf(t, tt.entries), root, "x", Ours, func(string, string) {})
			if (err == nil) != tt.ok {
				t.Errorf("error %v", err)
			}
			if b, err := os.ReadFile(into + "/mine"); string(b) != "mine" || err != nil {
				t.Errorf("what lay beside it: %q, %v", b, err)
			}
			left, err := os.ReadDir(into)
			for _, e := range left {
				if e.Name() != "mine" && e.Name() != "x" {
					t.Errorf("%v came beside it, %v", e, err)
				}
			}
		})
	}
}

// TestNotWhole: of a file that does not come whole nothing stays, and folders without end are an error.
func TestNotWhole(t *testing.T) {
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	b := tarOf(t, []tar.Header{{Name: "x", Typeflag: tar.TypeReg, Size: 4096}})
	if err := Unpack(io.LimitReader(b, 1024), root, "x", Ours, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v", err)
	}
	if fi, err := root.Lstat("x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is left: %v, %v", fi, err)
	}
	u := unpacker{root: root, as: ".", kept: maxDirs - 100}
	if err := u.dir(root, "y", attributes{mode: 0o755}); err == nil || len(u.dirs) > 0 {
		t.Errorf("%d folders are kept, %v", len(u.dirs), err)
	}
}

// TestFolderThatBecameAPipe: what a container puts in the place of a folder is not waited for.
func TestFolderThatBecameAPipe(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(dir+"/x", 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	fi, err := root.Stat(".") // as x was
	if err != nil {
		t.Fatal(err)
	}
	p := packer{w: tar.NewWriter(io.Discard), root: root}
	if err := p.addDir("x", "x", fi); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("error %v", err)
	}
}

// TestCopyTree: what is packed and unpacked is what there was.
func TestCopyTree(t *testing.T) {
	root, to := t.TempDir(), t.TempDir()
	write(t, root+"/a/deep/er/file", "content")
	write(t, root+"/a/run", "#!")
	link(t, "/elsewhere", root+"/a/link")
	if err := errors.Join(os.Chmod(root+"/a/run", 0o750), os.Chmod(root+"/a/deep", 0o500)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(os.Chmod(root+"/a/deep", 0o700), os.Chmod(to+"/deep", 0o700)) })
	for range 2 { // also over what is there
		if err := Fill(root, "/a", to); err != nil {
			t.Fatal(err)
		}
	}
	if err := Fill(root, "/none", to); err != nil {
		t.Errorf("what the image does not have: %v", err)
	}
	if b, err := os.ReadFile(to + "/deep/er/file"); string(b) != "content" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if l, err := os.Readlink(to + "/link"); l != "/elsewhere" || err != nil {
		t.Errorf("%q, %v", l, err)
	}
	for name, want := range map[string]fs.FileMode{"/run": 0o750, "/deep": 0o500} {
		a, err1 := os.Stat(root + "/a" + name)
		b, err2 := os.Stat(to + name)
		if err := errors.Join(err1, err2); err != nil || b.Mode().Perm() != want || !b.ModTime().Equal(a.ModTime()) {
			t.Errorf("%s: %v, %v", name, b, err)
		}
	}
}

func TestMainArguments(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/f", "x")
	var out, said bytes.Buffer
	if code := Main([]string{"stat", root, "/f"}, nil, &out, &said); code != 0 || out.String() != "file\n" {
		t.Errorf("%d, %q, %q", code, &out, &said)
	}
	for _, args := range [][]string{nil, {"stat"}, {"pack", root, "/none", "x"}, {"else", root, "/"}} {
		if code := Main(args, nil, &out, &said); code != 1 || said.Len() == 0 {
			t.Errorf("%q: %d, %q", args, code, &said)
		}
		said.Reset()
	}
	if _, handled := Run([]string{"strata", "run"}); handled {
		t.Error("an ordinary command line is taken for a copy")
	}
}
