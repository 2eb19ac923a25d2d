package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestNamesOfArchives: an archive whose entries have names, or targets, of nearly a MiB each is read until these have
// taken the budget and no further, and of one within the budget no more than that is kept.
func TestNamesOfArchives(t *testing.T) {
	const long = 1 << 20 // what one entry can have
	pad := strings.Repeat("n", long-100)
	for what, header := range map[string]func(i int) *tar.Header{
		"names": func(i int) *tar.Header { return &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint(pad, i)} },
		"targets": func(i int) *tar.Header {
			return &tar.Header{Typeflag: tar.TypeLink, Name: fmt.Sprint(i), Linkname: pad}
		},
		"dots": func(i int) *tar.Header { return &tar.Header{Name: strings.Repeat("./", long/2-50) + fmt.Sprint(i)} },
	} {
		for entries, fits := range map[int]bool{maxArchiveNames/long - 1: true, maxArchiveNames/long + 3: false} {
			t.Run(fmt.Sprint(what, entries), func(t *testing.T) {
				f, err := os.Create(filepath.Join(t.TempDir(), "archive.tar"))
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				w := tar.NewWriter(f)
				for i := range entries {
					h := header(i)
					h.Format = tar.FormatPAX
					err = errors.Join(err, w.WriteHeader(h))
				}
				if err := errors.Join(err, w.Close()); err != nil {
					t.Fatal(err)
				}
				all, err := indexTar(t.Context(), f)
				read, serr := f.Seek(0, io.SeekCurrent)
				if serr != nil {
					t.Fatal(serr)
				}
				if !fits {
					if !errors.Is(err, ErrTooLarge) || read > maxArchiveNames+2*long {
						t.Errorf("%v after %d bytes, want %v after %d", err, read, ErrTooLarge, maxArchiveNames)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				kept := 0
				for name, e := range all.entries {
					kept += len(name) + len(e.link)
				}
				if len(all.entries) != entries || kept > maxArchiveNames {
					t.Errorf("%d of %d entries, whose names have %d bytes", len(all.entries), entries, kept)
				}
			})
		}
	}
}
