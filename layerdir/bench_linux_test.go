package layerdir_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/layertree/treetest"
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
			if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/d%d/e%d/f%d", i%20, i/20%20, i), Mode: 0o644, Size: int64(size), ModTime: time.Unix(1e9, 0)}); err != nil {
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

// BenchmarkImport compares our conversions with what else turns a tar into files, from the same tar
// in the same run. Ours sync the file to the disk; none of the others does.
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
	tree := b.TempDir() // mkfs.erofs starts from a tree
	treetest.Run(b, "tar", "-xpf", path, "-C", tree)
	layout := umociLayout(b, path)
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
		{"tar2ext4", func(b *testing.B, dir string) {
			in := open(b)
			defer in.Close()
			out, err := os.Create(filepath.Join(dir, "layer.vhd"))
			if err != nil {
				b.Fatal(err)
			}
			defer out.Close()
			if err := tar2ext4.Convert(in, out, tar2ext4.ConvertWhiteout, tar2ext4.AppendVhdFooter); err != nil {
				b.Fatal(err)
			}
		}},
		{"tar xf", func(b *testing.B, dir string) { treetest.Run(b, "tar", "-xpf", path, "-C", dir) }},
		{"mkfs.erofs from a tree", func(b *testing.B, dir string) {
			treetest.Run(b, "mkfs.erofs", "--quiet", filepath.Join(dir, "layer.erofs"), tree)
		}},
		{"umoci unpack", func(b *testing.B, dir string) {
			if layout == "" {
				b.Skip("umoci is not installed: install the package umoci")
			}
			treetest.Run(b, "umoci", "unpack", "--image", layout+":x", filepath.Join(dir, "bundle"))
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

// umociLayout makes an image with the tar as its only layer, or gives "" without umoci. umoci
// compresses layers; the time to decompress is part of its unpacking.
func umociLayout(b *testing.B, path string) string {
	if _, err := exec.LookPath("umoci"); err != nil {
		return ""
	}
	dir := filepath.Join(b.TempDir(), "layout")
	treetest.Run(b, "umoci", "init", "--layout", dir)
	treetest.Run(b, "umoci", "new", "--image", dir+":x")
	treetest.Run(b, "umoci", "raw", "add-layer", "--image", dir+":x", path)
	return dir
}

// BenchmarkGunzip is the floor of an import from gzip.
func BenchmarkGunzip(b *testing.B) {
	path, size := rootTar(b)
	data, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write(data); err != nil {
		b.Fatal(err)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	for b.Loop() {
		r, err := gzip.NewReader(bytes.NewReader(z.Bytes()))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
	}
}
