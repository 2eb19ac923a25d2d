package image_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/test/imagetest"
)

// FuzzArchive: whatever a file holds, opening it and reading its layers ends, within bounds, and a layer
// that is read to io.EOF is the one that the image names.
func FuzzArchive(f *testing.F) {
	small := treetest.Tar(f, treetest.Entry{Name: "d/f", Body: "content"}, treetest.Entry{Name: "d/.wh.g"})
	blobs := imagetest.Blobs{}
	d := blobs.Image(f, nil, imagetest.Layer{Tar: small, Compression: "gzip"},
		imagetest.Layer{Tar: small, Compression: "zstd"}, imagetest.Layer{Tar: small})
	layout := blobs.LayoutTar(f, imagetest.Tagged(d, "v1"))
	docker := dockerArchive(f, configOf(f, small), small)
	for _, b := range [][]byte{layout, blobs.LayoutTar(f, blobs.Index(f, d)), docker, small} {
		for _, how := range []string{"", "gzip", "zstd"} {
			f.Add(imagetest.Compress(f, how, b))
		}
	}
	const limit = 1 << 20
	// What is allocated for a file and for each of its layers: the window of zstd is the most of it.
	const perStream = 128<<20 + 64<<20
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, "image.tar")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		before := allocated()
		img, err := image.Open(t.Context(), image.Source{Kind: image.File, Path: path},
			image.Options{Platform: amd64, MaxLayerBytes: limit, TempDir: dir})
		streams := uint64(3) // to look, to unpack, to read
		if err == nil {
			streams += uint64(len(img.Layers))
			for _, l := range img.Layers {
				drain(t, l, limit)
			}
			if err := img.Close(); err != nil {
				t.Error(err)
			}
		}
		if n := allocated() - before; n > streams*perStream {
			t.Errorf("%d MiB were allocated for a file of %d bytes", n>>20, len(b))
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 1 {
			t.Errorf("left beside the image: %v, %v", left, err)
		}
	})
}

// drain reads a layer and checks what comes to its end.
func drain(t *testing.T, l image.Layer, limit int64) {
	r, err := l.Open(t.Context(), nil)
	if err != nil {
		return
	}
	sum := sha256.New()
	n, err := io.Copy(sum, r)
	if err == nil && (n > limit || fmt.Sprintf("sha256:%x", sum.Sum(nil)) != l.DiffID) {
		t.Errorf("%d bytes of sha256:%x passed for %s, of at most %d", n, sum.Sum(nil), l.DiffID, limit)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// allocated is the number of bytes allocated so far.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// FuzzParseSource: what is understood can be written down and read again.
func FuzzParseSource(f *testing.F) {
	for _, s := range []string{"", "debian", "ghcr.io/org/app@sha256:" + strings.Repeat("a", 64),
		"docker://localhost:5000/a:b", "oci:dir:tag",
		"oci-archive:/x.tar", "docker-archive:x:app:v1", "tar:./x", "file:..", `C:\x:y`, "https://h/x", "./a:b:c", "x.tar",
		"tar::x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := image.ParseSource(text)
		if err != nil {
			if !errors.Is(err, image.ErrSource) {
				t.Errorf("%q: %v does not match %v", text, err, image.ErrSource)
			}
			return
		}
		again, err := image.ParseSource(s.String())
		if err != nil || again != s {
			t.Errorf("%q is %+v, which is written %q and read as %+v, %v", text, s, s, again, err)
		}
	})
}
