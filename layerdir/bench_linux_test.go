package layerdir_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stratavm/strata/layerdir"
)

// rootTar writes a tar like a small distribution: 6,000 files, most of them small, 140 MB in all, half
// of it text-like. STRATA_BENCH_TAR names a real one to use instead.
func rootTar(b *testing.B) (path string, size int64) {
	b.Helper()
	path = os.Getenv("STRATA_BENCH_TAR")
	if path == "" {
		path = filepath.Join(b.TempDir(), "root.tar")
		f, err := os.Create(path)
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		w := tar.NewWriter(f)
		random := rand.NewChaCha8([32]byte{1})
		pool := make([]byte, 8<<20)
		random.Read(pool)
		text := bytes.Repeat([]byte("/usr/share/doc/package/changelog: fixed a bug in the parser\n"), 1<<17)
		for i := range 6000 {
			size := 1 + i*i%4099
			if i%10 == 0 {
				size = i * 70
			}
			body := pool[i*7:][:size]
			if i%2 == 0 {
				body = text[:size]
			}
			if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/d%d/e%d/f%d", i%20, i/20%20, i), Mode: 0o644,
				Size: int64(size), ModTime: time.Unix(1e9, 0)}); err != nil {
				b.Fatal(err)
			}
			if _, err := w.Write(body); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
	st, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	return path, st.Size()
}

// BenchmarkImport converts a tar into each kind of layer, which is synced to the disk. See package store
// for other programs that do the like.
func BenchmarkImport(b *testing.B) {
	path, size := rootTar(b)
	open := func(b *testing.B) *os.File {
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		return f
	}
	ours := func(o layerdir.Options) func(b *testing.B, dir string) {
		return func(b *testing.B, dir string) {
			f := open(b)
			defer f.Close()
			o.Tar, o.Dir = f, filepath.Join(dir, "layer")
			if _, err := layerdir.Convert(b.Context(), o); err != nil {
				b.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name string
		do   func(b *testing.B, dir string)
	}{
		{"layer.vhd", ours(layerdir.Options{Format: layerdir.VHD})},
		{"layer.vhd with verity", ours(layerdir.Options{Format: layerdir.VHD, Verity: true})},
		{"layer.erofs", ours(layerdir.Options{Format: layerdir.EROFS})},
		{"read the tar only", func(b *testing.B, _ string) {
			f := open(b)
			defer f.Close()
			if _, err := io.Copy(io.Discard, struct{ io.Reader }{f}); err != nil {
				b.Fatal(err)
			}
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				dir := b.TempDir()
				b.StartTimer()
				c.do(b, dir)
				b.StopTimer()
				if err := os.RemoveAll(dir); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
