package image_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/stratavm/strata/image"
)

// TestNamesOfArchives: a small compressed archive whose entries have names, or targets, of nearly a MiB each takes
// no more memory than a few of them.
func TestNamesOfArchives(t *testing.T) {
	const entries = 60
	for what, header := range map[string]func(name string) *tar.Header{
		"names": func(name string) *tar.Header { return &tar.Header{Typeflag: tar.TypeReg, Name: name} },
		"targets": func(name string) *tar.Header {
			return &tar.Header{Typeflag: tar.TypeLink, Name: name[len(name)-20:], Linkname: name}
		},
	} {
		t.Run(what, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "archive.tar.gz")
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
			if err != nil {
				t.Fatal(err)
			}
			w := tar.NewWriter(z)
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			must(w.WriteHeader(&tar.Header{Name: "manifest.json", Typeflag: tar.TypeReg, Size: 2, Mode: 0o644}))
			_, err = io.WriteString(w, "[]")
			must(err)
			long := strings.Repeat("n", 1<<20-100)
			for i := range entries {
				h := header(fmt.Sprintf("%s%020d", long, i))
				h.Format = tar.FormatPAX
				must(w.WriteHeader(h))
			}
			must(errors.Join(w.Close(), z.Close(), f.Close()))

			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			img, err := image.Open(t.Context(), image.Source{Kind: image.DockerArchive, Path: path},
				image.Options{TempDir: t.TempDir()})
			runtime.ReadMemStats(&after)
			if err == nil {
				must(img.Close())
			}
			if !errors.Is(err, image.ErrTooLarge) {
				t.Errorf("got %v, want %v", err, image.ErrTooLarge)
			}
			// What the tar reader itself needs for a name is some MiB, a short while; with the race detector
			// it is twice that. Without a bound each name costs three times its length and more.
			if used := after.TotalAlloc - before.TotalAlloc; used > 9*16<<20 {
				t.Errorf("%d MiB were allocated for names of %d MiB", used>>20, entries)
			}
		})
	}
}
