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

// TestMetadataIsCounted: whatever a tar has its reader keep, it takes as much of the budget at least. What is counted
// does not depend on how memory is managed. What is not kept may be as long as it likes.
func TestMetadataIsCounted(t *testing.T) {
	long := func(n int, i int) string { return fmt.Sprintf("%0*d", n, i) }
	const many = 50
	for name, tt := range map[string]struct {
		entry func(i int) entry
		keeps bool
	}{
		"names":      {func(i int) entry { return entry{Name: long(255, i), Body: "x"} }, true},
		"deep names": {func(i int) entry { return entry{Name: strings.Repeat(long(254, i)+"/", 15)} }, true},
		"symbolic links": {func(i int) entry { return entry{Name: long(9, i), Type: tar.TypeSymlink, Link: long(4000, i)} },
			true},
		"hard links": {func(i int) entry { return entry{Name: long(255, i), Type: tar.TypeLink, Link: "target"} }, true},
		"whiteouts":  {func(i int) entry { return entry{Name: ".wh." + long(250, i)} }, true},
		"attributes": {func(i int) entry {
			return entry{Name: long(9, i), PAX: map[string]string{"SCHILY.xattr.user." + long(200, i): long(60_000, i)}}
		}, true},
		"many attributes": {func(i int) entry {
			pax := map[string]string{}
			for n := range 500 {
				pax["SCHILY.xattr.user."+long(5, n)] = "v"
			}
			return entry{Name: long(9, i), PAX: pax}
		}, true},
		"comments": {func(i int) entry { return entry{Name: "same", PAX: map[string]string{"comment": long(900_000, i)}} },
			false},
		"dots": {func(i int) entry { return entry{Name: strings.Repeat("./", 2000) + "same"} }, true},
	} {
		t.Run(name, func(t *testing.T) {
			entries := []entry{{Name: "target", Body: "x"}}
			for i := range many {
				entries = append(entries, tt.entry(i))
			}
			b := treetest.Tar(t, entries...)
			read := func(budget int64) (*layertree.Tree, error) {
				return layertree.FromTar(t.Context(), bytes.NewReader(b), io.Discard, 0, layertree.Options{MaxMetadata: budget})
			}
			tree, err := read(0)
			if err != nil {
				t.Fatal(err)
			}
			kept := int64(0)
			if err := tree.Walk(func(path string, n *layertree.Node) error {
				kept += int64(len(path[strings.LastIndex(path, "/")+1:]) + len(n.Target))
				for _, x := range n.Xattrs {
					kept += int64(len(x.Name) + len(x.Value))
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if !tt.keeps {
				if _, err := read(1000); err != nil || kept > 1000 {
					t.Errorf("%d bytes are kept, %v", kept, err)
				}
				return
			}
			if _, err := read(kept - 1); !errors.Is(err, layertree.ErrTooLarge) {
				t.Errorf("%d bytes are kept with a budget of one less: %v", kept, err)
			}
		})
	}
}
