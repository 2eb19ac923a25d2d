package image_test

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/store"
	"github.com/stratavm/strata/test/imagetest"
)

// seen is a tar that tells when its first byte is read, and counts.
type seen struct {
	io.Reader
	first func()
	n     int64
}

func (s *seen) Read(b []byte) (int, error) {
	n, err := s.Reader.Read(b)
	if n > 0 && s.n == 0 {
		s.first()
	}
	s.n += int64(n)
	return n, err
}

// TestPullOverlaps: a registry that keeps back the second half of each of two layers until both are being converted is
// no trouble: what has come of a layer is converted while the rest is under way, and layers are pulled at the same time.
// Each byte is asked for once, and none goes to a file before it is in its layer.
func TestPullOverlaps(t *testing.T) {
	for _, compression := range []string{"", "gzip", "zstd"} {
		t.Run("by "+compression, func(t *testing.T) { pullOverlaps(t, compression) })
	}
}

func pullOverlaps(t *testing.T, compression string) {
	noise := func(n uint32) string { // does not compress
		b := make([]byte, 16<<20)
		for i := range b {
			n = n*1664525 + 1013904223
			b[i] = byte(n >> 24)
		}
		return string(b)
	}
	b := imagetest.Blobs{}
	var layers []imagetest.Layer
	var bytes int64
	for i := range uint32(2) {
		tar := treetest.Tar(t, treetest.Entry{Name: "noise", Body: noise(i)})
		bytes += int64(len(tar))
		layers = append(layers, imagetest.Layer{Tar: tar, Compression: compression})
	}
	reg := imagetest.NewRegistry(t, b)
	reg.Tags["v1"] = b.Image(t, nil, layers...)
	var converting sync.WaitGroup
	converting.Add(2)
	both := make(chan struct{})
	go func() { converting.Wait(); close(both) }()
	temp := t.TempDir()
	reg.Before = func(w http.ResponseWriter, r *http.Request) bool {
		_, digest, ok := strings.Cut(r.URL.Path, "/blobs/")
		blob := b[digest]
		if !ok || len(blob) < 1<<20 {
			return false
		}
		if _, err := w.Write(blob[:len(blob)/2]); err != nil {
			t.Error(err)
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		select {
		case <-both:
		case <-time.After(time.Minute):
			t.Error("half of the layers has come, and not both are being converted")
		}
		if files, err := os.ReadDir(temp); err != nil || len(files) != 0 {
			t.Errorf("what comes is written to a file first: %v, %v", files, err)
		}
		_, _ = w.Write(blob[len(blob)/2:]) // the client says what is missing
		return true
	}
	var mu sync.Mutex
	var read int64
	st, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "store"), store.Options{Jobs: 2,
		Convert: func(ctx context.Context, o layerdir.Options) (layerdir.Result, error) {
			in := &seen{Reader: o.Tar, first: converting.Done}
			o.Tar = in
			res, err := layerdir.Convert(ctx, o)
			mu.Lock()
			defer mu.Unlock()
			read += in.n
			return res, err
		}})
	if err != nil {
		t.Fatal(err)
	}
	img, err := open(t, reg.Host()+"/org/app:v1", image.Options{Platform: amd64, TempDir: temp})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := img.Import(t.Context(), st, image.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	for digest, blob := range b {
		if n := reg.Count("/blobs/" + digest); len(blob) >= 1<<20 && n != 1 {
			t.Errorf("a layer is asked for %d times", n)
		}
	}
	if read > bytes || read < bytes-(1<<20) { // the end of a tar need not be read by who converts
		t.Errorf("%d bytes of tars are read of %d", read, bytes)
	}
}
