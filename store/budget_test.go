package store_test

import (
	"archive/tar"
	"errors"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/store"
)

// Layers that are each below the limit of a layer do not add up without end, whether they are imported one after
// the other or at the same time, in one format or in two; and those that fit together are imported.
func TestImageBudget(t *testing.T) {
	const layers, each = 8, 10_000
	for _, jobs := range []int{1, 8} {
		s := open(t, t.TempDir(), store.Options{Jobs: jobs})
		r := request(t, "i", 0, layers)
		r.MaxLayerBytes, r.MaxImageBytes = each, (layers-1)*each
		_, err := s.Import(t.Context(), r)
		if !errors.Is(err, layertree.ErrTooLarge) || !strings.Contains(err.Error(), "the image exceed 70000 bytes") {
			t.Errorf("%d at once: %v", jobs, err)
		}
		whole(t, s)
		r.MaxImageBytes = layers * each
		if len(r.Formats) == 0 {
			r.Formats = []store.Format{erofs, vhd} // each counts by itself
		}
		mustImport(t, open(t, t.TempDir(), store.Options{Jobs: jobs}), r)
	}
}

// What hard links copy from the layers below counts, too.
func TestImageBudgetOfChain(t *testing.T) {
	const size = 10_000
	r := request(t, "i", 0, 1)
	for _, name := range []string{"one", "two"} {
		link := treetest.Entry{Name: name, Link: "file0", Type: tar.TypeLink}
		r.Layers = append(r.Layers, layer(treetest.Tar(t, link)))
	}
	r.MaxImageBytes = 2*size - 1
	if _, err := open(t, t.TempDir(), store.Options{}).Import(t.Context(), r); !errors.Is(err, layertree.ErrTooLarge) {
		t.Error(err)
	}
	r.MaxImageBytes = 2 * size
	mustImport(t, open(t, t.TempDir(), store.Options{}), r)
}
