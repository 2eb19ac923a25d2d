package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/userns"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/store"
	"github.com/stratavm/strata/test/imagetest"
)

var erofs = store.Format{File: layerdir.EROFS}
var vhd = store.Format{File: layerdir.VHD}

func tarball(t testing.TB, n int) []byte {
	return treetest.Tar(t, treetest.Entry{Name: fmt.Sprintf("file%d", n), Body: strings.Repeat(fmt.Sprint(n), 10_000)})
}

// layer is a layer whose stream is right.
func layer(b []byte) store.Layer {
	return store.Layer{DiffID: imagetest.Digest(b), Size: int64(len(b)),
		Open: func(context.Context, func(int64)) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(b)), nil
		}}
}

// request asks for an image of n layers, counted from first.
func request(t testing.TB, name string, first, n int) store.Request {
	r := store.Request{Name: name, Digest: imagetest.Digest([]byte(name)), Source: "file:/none", Platform: "linux/amd64"}
	if userns.Inside() {
		r.Formats = []store.Format{{File: layerdir.Tree}}
	}
	for i := range n {
		r.Layers = append(r.Layers, layer(tarball(t, first+i)))
	}
	return r
}

func open(t testing.TB, dir string, o store.Options) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustImport(t testing.TB, s *store.Store, r store.Request) store.Image {
	t.Helper()
	img, err := s.Import(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// counting counts conversions.
func counting(n *atomic.Int32) store.Converter {
	return func(ctx context.Context, o layerdir.Options) (layerdir.Result, error) {
		n.Add(1)
		return layerdir.Convert(ctx, o)
	}
}

// whole fails the test when something is wrong with the store, or something temporary is in it.
func whole(t testing.TB, s *store.Store) store.Report {
	t.Helper()
	r, err := s.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Problems {
		t.Errorf("the store is damaged: %s: %s", p.Object, p.Reason)
	}
	clean(t, s)
	return r
}

func clean(t testing.TB, s *store.Store) {
	t.Helper()
	for _, dir := range []string{"tmp", "leases"} {
		list, err := os.ReadDir(filepath.Join(s.Dir(), dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			t.Errorf("left behind: %s/%s", dir, e.Name())
		}
	}
}

// objects lists the layers and chains on disk.
func objects(t testing.TB, s *store.Store) (layers, chains int) {
	t.Helper()
	l, err := filepath.Glob(filepath.Join(s.Dir(), "layers", "sha256", "*", "*"))
	c, err2 := filepath.Glob(filepath.Join(s.Dir(), "chains", "sha256", "*", "*"))
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	return len(l), len(c)
}

// layerFile is the file of a layer that the link in a chain's folder leads to, be it a hard one.
func layerFile(t *testing.T, s *store.Store, folder string) string {
	t.Helper()
	link, err := os.Stat(filepath.Join(folder, "layer.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	all, err := filepath.Glob(filepath.Join(s.Dir(), "layers", "sha256", "*", "*", "layer.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range all {
		if info, err := os.Stat(file); err == nil && os.SameFile(link, info) {
			return file
		}
	}
	t.Fatalf("%s links to none of %q", folder, all)
	return ""
}
