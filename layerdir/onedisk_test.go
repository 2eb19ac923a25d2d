package layerdir_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stratavm/strata/internal/format/erofs"
	"github.com/stratavm/strata/internal/format/gpt"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/layerdir"
)

// assemble reads the disk that extents describe.
func assemble(t *testing.T, disk []layerdir.Extent) []byte {
	t.Helper()
	var out []byte
	for _, e := range disk {
		b := make([]byte, e.Length)
		if e.Length%512 != 0 || e.Offset%512 != 0 {
			t.Errorf("%+v is not a whole number of sectors", e)
		}
		if e.Path != "" {
			f, err := os.Open(e.Path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.ReadAt(b, e.Offset); err != nil {
				t.Fatalf("%+v: %v", e, err)
			}
			f.Close()
		}
		out = append(out, b...)
	}
	return out
}

func TestOneDisk(t *testing.T) {
	base := t.TempDir()
	var layers, mixed []string // top first
	for i, format := range []layerdir.Format{layerdir.EROFS, layerdir.EROFS, layerdir.VHD} {
		res, err := layerdir.Convert(t.Context(),
			layerdir.Options{Format: format, Verity: i == 1, Dir: filepath.Join(base, fmt.Sprint(i)),
				Tar: bytes.NewReader(treetest.Tar(t, entry{Name: fmt.Sprintf("f%d", i), Body: fmt.Sprint(i)}))})
		if err != nil {
			t.Fatal(err)
		}
		if mixed = append(mixed, res.Path); format == layerdir.EROFS {
			layers = append(layers, res.Path)
		}
	}
	index := filepath.Join(base, "index")
	disk, err := layerdir.IndexDisk(index, layers)
	if err != nil {
		t.Fatal(err)
	}
	b := assemble(t, disk)
	tree, err := erofs.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range layers {
		n := tree.Root.Child(fmt.Sprintf("f%d", i))
		if n == nil || len(n.Runs) != 1 || string(b[int64(n.Runs[0].Start)*4096:][:n.Size]) != fmt.Sprint(i) {
			t.Errorf("layer %d: its file is %+v", i, n)
		}
	}
	if _, err := layerdir.IndexDisk(index, layers); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over an index: %v", err)
	}
	other := filepath.Join(base, "other")
	if _, err := layerdir.IndexDisk(other, mixed); !errors.Is(err, erofs.ErrNotEROFS) {
		t.Errorf("an index over ext4: %v", err)
	}
	if _, err := os.Stat(other); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a failed index was left: %v", err)
	}
	if disk, err = layerdir.PartitionDisk(other, mixed); err != nil {
		t.Fatal(err)
	}
	b = assemble(t, disk)
	parts, err := gpt.Read(bytes.NewReader(b), int64(len(b)))
	if err != nil || len(parts) != len(mixed) {
		t.Fatalf("%v, %v", parts, err)
	}
	for i, p := range parts {
		want, err := os.ReadFile(mixed[i])
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b[p.Offset:][:p.Size], want[:p.Size]) {
			t.Errorf("partition %d is not layer %d", i+1, i)
		}
	}
}
