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

type entry = treetest.Entry

func read(t testing.TB, b []byte, o layertree.Options) (*layertree.Tree, error) {
	t.Helper()
	return layertree.FromTar(t.Context(), bytes.NewReader(b), io.Discard, 1, o)
}

// list is one line for each name in a tree.
func list(t testing.TB, tree *layertree.Tree) string {
	var b strings.Builder
	err := tree.Walk(func(path string, n *layertree.Node) error {
		kind := map[uint32]string{
			layertree.TypeDir: "dir", layertree.TypeRegular: "file", layertree.TypeSymlink: "link",
			layertree.TypeChar: "char", layertree.TypeBlock: "block", layertree.TypeFifo: "fifo",
		}[n.Type()]
		switch {
		case n.IsWhiteout():
			kind = "whiteout"
		case n.IsOpaque():
			kind = "opaque"
		}
		fmt.Fprintf(&b, "%s %s %d\n", path, kind, n.Nlink)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestEntriesOfOddTars(t *testing.T) {
	link := func(name, to string) entry { return entry{Name: name, Type: tar.TypeLink, Link: to} }
	sym := func(name, to string) entry { return entry{Name: name, Type: tar.TypeSymlink, Link: to} }
	for _, c := range []struct {
		name string
		tar  []entry
		want string
	}{
		{"nothing", nil, "/ dir 2\n"},
		{"directory without a name", []entry{{Name: "", Type: tar.TypeDir}, {Name: "f"}}, "/ dir 2\n/f file 1\n"},
		{"whiteout", []entry{{Name: "d/.wh.gone"}}, "/ dir 3\n/d dir 2\n/d/gone whiteout 1\n"},
		{"whiteout in the root", []entry{{Name: ".wh.gone"}}, "/ dir 2\n/gone whiteout 1\n"},
		{"opaque", []entry{{Name: "d/"}, {Name: "d/.wh..wh..opq"}, {Name: "d/f"}}, "/ dir 3\n/d opaque 2\n/d/f file 1\n"},
		{"opaque before its directory", []entry{{Name: "d/.wh..wh..opq"}, {Name: "d/"}}, "/ dir 3\n/d opaque 2\n"},
		{"opaque root", []entry{{Name: ".wh..wh..opq"}}, "/ opaque 2\n"},
		{"whiteout beside a file", []entry{{Name: ".wh.f"}, {Name: "f"}}, "/ dir 2\n/f file 1\n"},
		{"whiteout below a file of this layer", []entry{{Name: "d"}, {Name: "d/.wh.x"}, {Name: "d/e/.wh..wh..opq"}},
			"/ dir 2\n/d file 1\n"},
		{"whiteout below what becomes a file", []entry{{Name: "d/.wh.x"}, {Name: "d"}}, "/ dir 2\n/d file 1\n"},
		{"whiteout after its directory", []entry{{Name: "d/f"}, {Name: ".wh.d"}}, "/ dir 3\n/d opaque 2\n/d/f file 1\n"},
		{"aufs bookkeeping", []entry{{Name: ".wh..wh.plnk"}, {Name: ".wh..wh.aufs"}}, "/ dir 2\n"},
		{"last file wins", []entry{{Name: "f", Body: "1"}, {Name: "f", Body: "22"}}, "/ dir 2\n/f file 1\n"},
		{"file after directory", []entry{{Name: "x/y/"}, {Name: "x"}}, "/ dir 2\n/x file 1\n"},
		{"directory after file", []entry{{Name: "x"}, {Name: "x/y"}}, "/ dir 3\n/x dir 2\n/x/y file 1\n"},
		{"directory twice keeps its entries", []entry{{Name: "x/y"}, {Name: "x/"}}, "/ dir 3\n/x dir 2\n/x/y file 1\n"},
		{"links", []entry{{Name: "a"}, link("d/b", "a"), link("c", "d/b")}, "/ dir 3\n/a file 3\n/d dir 2\n"},
		{"link before its target", []entry{link("a", "b"), link("b", "c"), {Name: "c"}}, "/ dir 2\n/a file 3\n"},
		{"link to a symbolic link", []entry{sym("s", "/x"), link("t", "s")}, "/ dir 2\n/s link 2\n"},
		{"link to itself", []entry{{Name: "a"}, link("a", "a")}, "/ dir 2\n/a file 1\n"},
		{"link outlives its target's name", []entry{{Name: "a", Body: "1"}, link("b", "a"), {Name: "a", Body: "2"}},
			"/ dir 2\n/a file 1\n/b file 1\n"},
		{"removed subtree gives links back", []entry{{Name: "a"}, link("d/e/b", "a"), {Name: "d"}},
			"/ dir 2\n/a file 1\n/d file 1\n"},
		{"absolute names", []entry{{Name: "/etc/"}, {Name: "/etc/f"}, link("/l", "/etc/f")},
			"/ dir 3\n/etc dir 2\n/etc/f file 2\n"},
		{"through a symbolic link", []entry{{Name: "usr/lib/"}, sym("lib", "usr/lib"), {Name: "lib/f"}},
			"/ dir 3\n/lib link 1\n/usr dir 3\n/usr/lib dir 2\n/usr/lib/f file 1\n"},
		{"through a link that leads out", []entry{sym("out", "../../../etc"), {Name: "out/f"}},
			"/ dir 3\n/etc dir 2\n/etc/f file 1\n/out link 1\n"},
		{"dots and slashes", []entry{{Name: ".//a/./b//c"}}, "/ dir 3\n/a dir 3\n/a/b dir 2\n/a/b/c file 1\n"},
		{"dots that stay inside", []entry{{Name: "x/../y"}, {Name: "a/b/../../c/./d/.."}, link("x/z/../../h", "q/../y")},
			"/ dir 2\n/c file 1\n/h file 2\n"},
		{"the label of an archive", []entry{{Name: "backup of monday", Type: 'V'}, {Name: "f"}}, "/ dir 2\n/f file 1\n"},
		{"a directory with a list of its entries",
			[]entry{{Name: "d/", Type: 'D', Body: "Yf\x00Nold\x00\x00"}, {Name: "d/f"}}, "/ dir 3\n/d dir 2\n/d/f file 1\n"},
		{"whiteouts of a directory and in it", []entry{{Name: ".wh.d"}, {Name: "d/.wh.f"}}, "/ dir 2\n/d whiteout 1\n"},
		{"whiteouts in a directory and of it", []entry{{Name: "d/.wh.f"}, {Name: ".wh.d"}}, "/ dir 2\n/d whiteout 1\n"},
		{"whiteouts on three levels", []entry{{Name: ".wh.d"}, {Name: "d/.wh.e"}, {Name: "d/e/.wh.f"},
			{Name: "d/x/.wh..wh..opq"}}, "/ dir 2\n/d whiteout 1\n"},
		{"a whiteout and, far below it, a file",
			[]entry{{Name: "d/e/.wh.g"}, {Name: "d/e/f/.wh.h"}, {Name: "d/e/i/j"}, {Name: ".wh.d"}},
			"/ dir 3\n/d opaque 3\n/d/e dir 3\n/d/e/i dir 2\n/d/e/i/j " +
				"file 1\n"},
		{"a whiteout beside a directory's entry", []entry{{Name: "d/"}, {Name: ".wh.d"}, {Name: "d/.wh.f"}},
			"/ dir 3\n/d opaque 2\n"},
		{"overlay instructions", []entry{{Name: "d/", PAX: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/x",
			"SCHILY.xattr.trusted.overlay.opaque": "y"}}}, "/ dir 3\n/d opaque 2\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree, err := read(t, treetest.Tar(t, c.tar...), layertree.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if got := list(t, tree); got != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
			if _, ok := tree.Root.Xattr("trusted.overlay.redirect"); ok {
				t.Error("an instruction to overlayfs was kept")
			}
		})
	}
}

func TestHostile(t *testing.T) {
	link := func(name, to string) entry { return entry{Name: name, Type: tar.TypeLink, Link: to} }
	many := make([]entry, 50)
	for i := range many {
		many[i] = entry{Name: fmt.Sprintf("f%d", i)}
	}
	deep := entry{Name: strings.Repeat("d/", 40) + "f"}
	for _, c := range []struct {
		name string
		tar  []entry
		o    layertree.Options
		want error
		text string // what the message must name
	}{
		{name: "escaping name", tar: []entry{{Name: "../etc/passwd"}}, want: layertree.ErrEscape, text: "../etc/passwd"},
		{name: "escaping in the middle", tar: []entry{{Name: "a/../../b"}}, want: layertree.ErrEscape, text: "a/../../b"},
		{name: "escaping at the end", tar: []entry{{Name: "a/b/../../.."}}, want: layertree.ErrEscape, text: "a/b"},
		{name: "escaping and back", tar: []entry{{Name: "../root/f"}}, want: layertree.ErrEscape, text: "../root/f"},
		{name: "escaping hard link", tar: []entry{link("l", "../../etc/shadow")}, want: layertree.ErrEscape,
			text: "etc/shadow"},
		{name: "absolute hard link to the host", tar: []entry{link("l", "/etc/shadow")}, want: layertree.ErrLink,
			text: "etc/shadow"},
		{name: "cyclic hard links", tar: []entry{link("a", "b"), link("b", "a")}, want: layertree.ErrLink, text: `"a"`},
		{name: "hard link to itself", tar: []entry{link("a", "a")}, want: layertree.ErrLink, text: `"a"`},
		{name: "hard link to a directory", tar: []entry{{Name: "d/"}, link("l", "d")}, want: layertree.ErrInvalid,
			text: `"l"`},
		{name: "loop of symbolic links", tar: []entry{{Name: "a", Type: tar.TypeSymlink, Link: "b"},
			{Name: "b", Type: tar.TypeSymlink, Link: "a"}, {Name: "a/f"}},
			want: layertree.ErrInvalid, text: "a/f"},
		{name: "long name", tar: []entry{{Name: strings.Repeat("n", 256)}}, want: layertree.ErrInvalid, text: "256 bytes"},
		{name: "long path", tar: []entry{{Name: strings.Repeat("p/", 2100) + "f"}}, want: layertree.ErrInvalid,
			text: "4201 bytes"},
		{name: "long target", tar: []entry{{Name: "s", Type: tar.TypeSymlink, Link: strings.Repeat("s", 4096)}},
			want: layertree.ErrInvalid, text: `"s"`},
		{name: "whiteout of nothing", tar: []entry{{Name: ".wh."}}, want: layertree.ErrInvalid, text: ".wh."},
		{name: "whiteout of the parent", tar: []entry{{Name: "d/.wh..."}}, want: layertree.ErrInvalid, text: ".wh..."},
		{name: "file without a name", tar: []entry{{Name: "", Body: "x"}}, want: layertree.ErrInvalid, text: "root"},
		{name: "file as root", tar: []entry{{Name: "./", Type: tar.TypeSymlink, Link: "/"}}, want: layertree.ErrInvalid,
			text: "root"},
		{name: "device numbers", tar: []entry{{Name: "dev", Type: tar.TypeBlock, Major: 5000}}, want: layertree.ErrInvalid,
			text: "5000"},
		{name: "too many bytes", tar: []entry{{Name: "a", Body: "12345"}, {Name: "b", Body: "123456"}},
			o: layertree.Options{MaxBytes: 10}, want: layertree.ErrTooLarge, text: `"b"`},
		{name: "too many entries", tar: many, o: layertree.Options{MaxEntries: 49}, want: layertree.ErrTooLarge, text: "f49"},
		{name: "too many parents", tar: []entry{deep}, o: layertree.Options{MaxEntries: 40}, want: layertree.ErrTooLarge,
			text: "40"},
		{name: "too much metadata", tar: many, o: layertree.Options{MaxMetadata: 20}, want: layertree.ErrTooLarge,
			text: "20 bytes"},
		{name: "ACL with names only", tar: []entry{{Name: "f",
			PAX: map[string]string{"SCHILY.acl.access": "user::rw-,user:alice:r--,group::r--,mask::r--,other::---"}}},
			want: layertree.ErrInvalid, text: "alice"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := read(t, treetest.Tar(t, c.tar...), c.o)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if !strings.Contains(err.Error(), c.text) {
				t.Errorf("the error does not name %q: %v", c.text, err)
			}
		})
	}
}

// TestSizeLies: streams that end before what they announce.
func TestSizeLies(t *testing.T) {
	whole := treetest.Tar(t, entry{Name: "f", Body: strings.Repeat("x", 10_000)})
	for _, n := range []int{1, 511, 700, 1024, 5000, 11_000} {
		if _, err := read(t, whole[:n], layertree.Options{}); err == nil {
			t.Errorf("a tar cut after %d bytes was accepted", n)
		}
	}
	if _, err := read(t, nil, layertree.Options{AllowUnterminated: true}); err != nil {
		t.Errorf("no bytes at all, with a digest: %v", err)
	}
	for name, b := range map[string][]byte{
		"empty": nil, "gzip": {0x1f, 0x8b, 8, 0, 0, 0, 0, 0}, "zstd": {0x28, 0xb5, 0x2f, 0xfd, 0, 0},
		"text": bytes.Repeat([]byte("no tar "), 200),
	} {
		if _, err := read(t, b, layertree.Options{}); err == nil {
			t.Errorf("%s was accepted", name)
		} else if name == "gzip" && !strings.Contains(err.Error(), "gzip") {
			t.Errorf("the error does not say gzip: %v", err)
		}
	}
}

// TestUnterminated: with a digest that is checked elsewhere a tar may lack its end, but nothing of a file.
func TestUnterminated(t *testing.T) {
	const size = 10_000
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644, Size: size})
	if err == nil {
		_, err = w.Write(bytes.Repeat([]byte("x"), size))
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	const content = 512 + size // where the content ends; what fills its block is not missed
	for _, n := range []int{b.Len(), b.Len() - 512, b.Len() - 1024, content} {
		tree, err := read(t, b.Bytes()[:n], layertree.Options{AllowUnterminated: true})
		if err != nil {
			t.Errorf("cut after %d bytes, behind the content: %v", n, err)
		} else if f := tree.Root.Child("f"); f == nil || f.Size != size {
			t.Errorf("cut after %d bytes: the file is %+v", n, f)
		}
	}
	for _, n := range []int{1, 511, 512, 700, 1024, 5000, content - 1} {
		if _, err := read(t, b.Bytes()[:n], layertree.Options{AllowUnterminated: true}); !errors.Is(err,
			io.ErrUnexpectedEOF) {
			t.Errorf("cut after %d bytes: error %v, want %v", n, err, io.ErrUnexpectedEOF)
		}
	}
	if _, err := read(t, b.Bytes()[:b.Len()-1024], layertree.Options{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("without a digest: error %v, want %v", err, io.ErrUnexpectedEOF)
	}
}

// TestReadsToTheEnd: whoever computes a digest sees the padding too.
func TestReadsToTheEnd(t *testing.T) {
	b := append(treetest.Tar(t, entry{Name: "f"}), make([]byte, 100_000)...)
	r := bytes.NewReader(b)
	if _, err := layertree.FromTar(t.Context(), r, io.Discard, 1, layertree.Options{}); err != nil || r.Len() != 0 {
		t.Errorf("%d bytes were left, error %v", r.Len(), err)
	}
	if _, err := read(t, b, layertree.Options{MaxBytes: 50_000}); !errors.Is(err, layertree.ErrTooLarge) {
		t.Errorf("padding beyond the limit: %v", err)
	}
}

// TestACLText: what GNU tar --acls writes becomes what the kernel reads.
func TestACLText(t *testing.T) {
	tree, err := read(t, treetest.Tar(t, entry{Name: "f", PAX: map[string]string{
		"SCHILY.acl.access": "user::rw-\nuser:1000:r--\ngroup::r-x\ngroup:root:--x\nmask::rwx\nother::---\n"}}),
		layertree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" +
		"\x04\x00\x05\x00\xff\xff\xff\xff" +
		"\x08\x00\x01\x00\x00\x00\x00\x00" + "\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
	if got, _ := tree.Root.Child("f").Xattr(layertree.AccessACL); got != want {
		t.Errorf("got %x, want %x", got, want)
	}
}

func FuzzFromTar(f *testing.F) {
	f.Add(treetest.Tar(f, entry{Name: "x",
		PAX: map[string]string{"SCHILY.xattr.user.a": "b", "SCHILY.acl.access": "user::rw-,other::r--"}}))
	f.Add(treetest.Tar(f, entry{Name: "d/.wh.x"}, entry{Name: "l", Type: tar.TypeLink, Link: "m"},
		entry{Name: "m", Body: "1"}))
	f.Add(treetest.Tar(f, entry{Name: "s", Type: tar.TypeSymlink, Link: "../s/t"}, entry{Name: "s/f"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var out bytes.Buffer
		tree, err := layertree.FromTar(t.Context(), bytes.NewReader(b), &out, 7,
			layertree.Options{MaxBytes: 1 << 20, MaxEntries: 1000, MaxMetadata: 1 << 20})
		if err != nil {
			return
		}
		if int(tree.NextBlock-7)*layertree.BlockSize != out.Len() {
			t.Fatalf("%d bytes written, but the next block is %d", out.Len(), tree.NextBlock)
		}
		if err := tree.Walk(func(path string, n *layertree.Node) error {
			next := uint32(0)
			for _, r := range n.Runs {
				if r.File < next || r.Start < 7 || r.Start+r.Blocks > tree.NextBlock ||
					int64(r.File+r.Blocks-1)*layertree.BlockSize >= n.Size {
					return fmt.Errorf("%s: run %+v of a file of %d bytes", path, r, n.Size)
				}
				next = r.File + r.Blocks
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	})
}
