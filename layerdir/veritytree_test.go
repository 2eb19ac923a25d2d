package layerdir

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/format/verity"
)

// TestVerityInImage: the tree in an image is found without its record, and nothing else is taken for one.
func TestVerityInImage(t *testing.T) {
	put := func(at int64, b ...byte) func(*os.File, verity.Info) error {
		return func(f *os.File, info verity.Info) error {
			if at < 0 {
				at = info.DataBytes - at
			}
			_, err := f.WriteAt(b, at)
			return err
		}
	}
	const tree = -1 // and below: in the super block of the tree
	for _, format := range []Format{EROFS, VHD} {
		for _, tt := range []struct {
			name          string
			change        func(*os.File, verity.Info) error
			without       bool // made without a tree
			none, refused bool
		}{
			{name: "whole"},
			{name: "without", without: true, none: true},
			{name: "no file system", change: put(0, make([]byte, 4096)...), none: true},
			{name: "short", change: func(f *os.File, _ verity.Info) error { return f.Truncate(1500) }, none: true},
			{name: "empty", change: func(f *os.File, _ verity.Info) error { return f.Truncate(0) }, none: true},
			{name: "nothing after the data",
				change: func(f *os.File, i verity.Info) error { return f.Truncate(i.DataBytes) }, none: true},
			{name: "no root block",
				change: func(f *os.File, i verity.Info) error { return f.Truncate(i.DataBytes + 4096) }, refused: true},
			{name: "half a tree",
				change: func(f *os.File, i verity.Info) error { return f.Truncate(i.DataBytes + i.TreeBytes - 1) }, refused: true},
			{name: "unknown version", change: put(tree*8, 9), refused: true},
			{name: "other number of blocks", change: put(tree*72, 0xff), refused: true},
			{name: "endless file system", change: func(f *os.File, _ verity.Info) error {
				at := int64(superBlockAt + 36) // EROFS: its number of blocks
				if format == VHD {
					at = superBlockAt + 4
				}
				_, err := f.WriteAt(binary.LittleEndian.AppendUint32(nil, 1<<32-1), at)
				return err
			}, none: true},
		} {
			t.Run(string(format)+"/"+tt.name, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "layer")
				res, err := Convert(t.Context(), Options{Format: format, Verity: !tt.without, Dir: dir,
					Tar: bytes.NewReader(treetest.Tar(t, treetest.Entry{Name: "file", Body: string(make([]byte, 1<<20))}))})
				if err != nil {
					t.Fatal(err)
				}
				image := filepath.Join(dir, format.FileName())
				var want verity.Info
				if res.Verity != nil {
					want = *res.Verity
				}
				if tt.change != nil {
					f, err := os.OpenFile(image, os.O_RDWR, 0)
					if err != nil {
						t.Fatal(err)
					}
					if err := errors.Join(tt.change(f, want), f.Close()); err != nil {
						t.Fatal(err)
					}
				}
				got, err := VerityInImage(image)
				switch none := errors.Is(err, fs.ErrNotExist); {
				case none != tt.none || (err != nil) != (tt.none || tt.refused):
					t.Errorf("%+v, %v", got, err)
				case err == nil && !cmp.Equal(got, want):
					t.Error(cmp.Diff(want, got))
				}
			})
		}
	}
	if _, err := VerityInImage(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no image: %v", err)
	}
}
