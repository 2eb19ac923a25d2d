package erofs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

// TestLayersShareMemory: layers that each stay below the limit do not exceed it together.
func TestLayersShareMemory(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "layer.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tar := treetest.Tar(t, treetest.Entry{Name: "d/"}, treetest.Entry{Name: "d/f", Body: "x"})
	info, err := WriteLayer(t.Context(), f, bytes.NewReader(tar), layertree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	const much = 1 << 30
	whole := newBudget(much)
	if _, err := open(f, info.Bytes, whole); err != nil {
		t.Fatal(err)
	}
	cost := much - whole.left.Load()
	if cost < 3*nodeCost {
		t.Fatalf("the image costs %d bytes, less than its files", cost)
	}
	memory := newBudget(2*cost - 1)
	if _, err := open(f, info.Bytes, memory); err != nil {
		t.Errorf("the first: %v", err)
	}
	if _, err := open(f, info.Bytes, memory); !errors.Is(err, ErrTooLarge) {
		t.Errorf("the second: error %v, want %v", err, ErrTooLarge)
	}
}
