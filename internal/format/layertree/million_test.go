//go:build !race

// The race detector makes this several times slower and larger, and there is nothing concurrent in it.

package layertree_test

import (
	"archive/tar"
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stratavm/strata/internal/format/erofs"
	"github.com/stratavm/strata/internal/format/ext4"
	"github.com/stratavm/strata/internal/format/layertree"
)

const million = 1_000_000

// TestMillionEntries: a layer with a million entries becomes an image of either format, in bounded
// memory. What is bounded is the live heap while metadata is written, when the tree, the plan of the image
// and what is being written are all there.
func TestMillionEntries(t *testing.T) {
	if testing.Short() {
		t.Skip("a million entries take many seconds: run without -short")
	}
	// Bytes for an entry: a node, its name, its place in a directory and in the image. More than twice of
	// what was seen.
	const maxHeap, minHeap = 1200 * million, 100 * million
	for _, c := range []struct {
		name  string
		write func(w io.WriteSeeker, r io.Reader) (inodes int, err error)
	}{
		{"erofs", func(w io.WriteSeeker, r io.Reader) (int, error) {
			info, err := erofs.WriteLayer(t.Context(), w, r, layertree.Options{})
			return info.Inodes, err
		}},
		{"ext4", func(w io.WriteSeeker, r io.Reader) (int, error) {
			info, err := ext4.WriteLayer(t.Context(), w, r, layertree.Options{})
			return info.Inodes, err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "image"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			base := liveHeap()
			peak := base
			out := &watched{File: f, now: func() { peak = max(peak, liveHeap()) }}
			inodes, err := c.write(out, millionTar(t))
			if err != nil {
				t.Fatal(err)
			}
			if inodes < million {
				t.Errorf("%d inodes of a tar with %d entries", inodes, million)
			}
			used := peak - base
			t.Logf("%d MiB of live heap", used>>20)
			if used > maxHeap {
				t.Errorf("%d MiB of live heap, at most %d are expected", used>>20, maxHeap>>20)
			}
			if used < minHeap {
				t.Errorf("%d MiB of live heap cannot hold a million entries: it was not looked at in time", used>>20)
			}
		})
	}
}

// watched calls now at some of the writes.
type watched struct {
	*os.File
	now    func()
	writes int
}

func (w *watched) Write(b []byte) (int, error) {
	if w.writes%20 == 0 {
		w.now()
	}
	w.writes++
	return w.File.Write(b)
}

// liveHeap is what is in use after a collection, in bytes.
func liveHeap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// millionTar creates a tar of a million entries while it is read: directories of 999 empty files each.
// There is no content, so that all that is written to the image is metadata.
func millionTar(t *testing.T) io.Reader {
	t.Helper()
	r, w := io.Pipe()
	t.Cleanup(func() { r.Close() })
	go func() {
		b := bufio.NewWriterSize(w, 1<<20)
		tw := tar.NewWriter(b)
		err := func() error {
			for i := range million {
				h := &tar.Header{Name: fmt.Sprintf("d%d/f%d", i/1000, i), Typeflag: tar.TypeReg, Mode: 0o644}
				if i%1000 == 0 {
					h = &tar.Header{Name: fmt.Sprintf("d%d/", i/1000), Typeflag: tar.TypeDir, Mode: 0o755}
				}
				if err := tw.WriteHeader(h); err != nil {
					return err
				}
			}
			if err := tw.Close(); err != nil {
				return err
			}
			return b.Flush()
		}()
		w.CloseWithError(err)
	}()
	return r
}
