package layertree_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

// chain is a layer of hard links, each to the one after it, and of the file that the last one names.
func chain(t *testing.T, links int) []byte {
	t.Helper()
	entries := make([]entry, 0, links+1)
	for i := range links {
		entries = append(entries, entry{Name: fmt.Sprint("f", i), Type: tar.TypeLink, Link: fmt.Sprint("f", i+1)})
	}
	return treetest.Tar(t, append(entries, entry{Name: fmt.Sprint("f", links)})...)
}

// TestReversedLinks: a long chain of links whose targets come after them takes a time that grows with it;
// one that grows with its square ends at the time limit of the tests.
func TestReversedLinks(t *testing.T) {
	const links = 100_000
	tree, err := read(t, chain(t, links), layertree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := tree.Root.Child("f0"); got == nil || got.Nlink != links+1 || got != tree.Root.Child(fmt.Sprint("f", links)) {
		t.Errorf("the first of %d links is %+v", links, got)
	}
}

// TestLinksWait: links wait for whatever is missing on the way to their targets.
func TestLinksWait(t *testing.T) {
	link := func(name, to string) entry { return entry{Name: name, Type: tar.TypeLink, Link: to} }
	sym := func(name, to string) entry { return entry{Name: name, Type: tar.TypeSymlink, Link: to} }
	for _, c := range []struct {
		name string
		tar  []entry
		want string
	}{
		{"for a link in a directory that a link makes", []entry{link("a", "d/e/b"), link("d/e/b", "c"), {Name: "c"}},
			"/ dir 3\n/a file 3\n/d dir 3\n/d/e dir 2\n"},
		{"behind a symbolic link", []entry{sym("s", "d"), link("a", "s/b"), link("x", "a"), link("d/b", "c"), {Name: "c"}},
			"/ dir 3\n/a file 4\n/d dir 2\n/s link 1\n"},
		{"behind a symbolic link that is a link",
			[]entry{link("a", "t/b"), link("t", "s"), link("d/b", "c"), sym("s", "/d"), {Name: "c"}},
			"/ dir 3\n/a file 3\n/d dir 2\n/s link 2\n"},
		{"two for one", []entry{link("a", "c"), link("b", "c"), link("c", "d"), {Name: "d"}}, "/ dir 2\n/a file 4\n"},
		{"and lose to an entry", []entry{link("a", "b"), link("b", "c"), {Name: "c"}, {Name: "a"}},
			"/ dir 2\n/a file 1\n/b file 2\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree, err := read(t, treetest.Tar(t, c.tar...), layertree.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if got := list(t, tree); got != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
		})
	}
	_, err := read(t, treetest.Tar(t, link("e", "c"), link("a", "b"), link("b", "a"), entry{Name: "c"}, link("d", "x/y")),
		layertree.Options{})
	if !errors.Is(err, layertree.ErrLink) || !strings.Contains(err.Error(), `entry 2, "a"`) ||
		!strings.Contains(err.Error(), "3 such links") {
		t.Errorf("of three links without a target: %v", err)
	}
}

// TestLinksEnd: the end of the context ends the making of links, when the tar has been read.
func TestLinksEnd(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	b := chain(t, 1000)
	in := &lastBlock{r: bytes.NewReader(b), left: len(b), now: func() { cancel(why) }}
	if _, err := layertree.FromTar(ctx, in, io.Discard, 1, layertree.Options{}); !errors.Is(err, why) ||
		!strings.Contains(err.Error(), "hard links") {
		t.Errorf("got %v, want %v while hard links are made", err, why)
	}
}

// lastBlock returns a tar block by block and calls now before the last.
type lastBlock struct {
	r    io.Reader
	left int
	now  func()
}

func (l *lastBlock) Read(b []byte) (int, error) {
	if l.left == 512 {
		l.now()
	}
	n, err := l.r.Read(b[:min(len(b), 512)])
	l.left -= n
	return n, err
}
