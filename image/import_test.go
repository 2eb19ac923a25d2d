package image_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/store"
	"github.com/stratavm/strata/test/imagetest"
)

func importInto(t *testing.T, st *store.Store, source string) store.Image {
	t.Helper()
	src, err := image.ParseSource(source)
	if err != nil {
		t.Fatal(err)
	}
	img, err := image.Open(t.Context(), src, image.Options{Platform: amd64})
	if err != nil {
		t.Fatal(err)
	}
	rec, err := img.Import(t.Context(), st, image.ImportOptions{})
	if err := errors.Join(err, img.Close()); err != nil { // the test may remove the source
		t.Fatal(err)
	}
	return rec
}

func newStore(t *testing.T) *store.Store {
	st, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "store"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// TestImportOdd: images without layers, and layers without a byte.
func TestImportOdd(t *testing.T) {
	b := imagetest.Blobs{}
	tarball := treetest.Tar(t, treetest.Entry{Name: "etc/x", Body: "x"})
	for name, tt := range map[string]struct {
		d      imagetest.Descriptor
		layers int
	}{
		"no layers": {b.Image(t, nil), 1},
		"no layers, null": {b.ImageWith(t, nil, func(config map[string]any) {
			config["rootfs"] = map[string]any{"type": "layers", "diff_ids": nil}
		}), 1},
		"no layers, no rootfs": {b.ImageWith(t, nil, func(config map[string]any) { delete(config, "rootfs") }), 1},
		"empty layer":          {b.Image(t, nil, imagetest.Layer{Tar: tarball}, imagetest.Layer{Tar: []byte{}}), 2},
		"empty in gzip": {b.Image(t, nil, imagetest.Layer{Tar: tarball},
			imagetest.Layer{Tar: []byte{}, Compression: "gzip"}), 2},
		"nothing but end": {b.Image(t, nil, imagetest.Layer{Tar: make([]byte, 1024)}), 1},
	} {
		t.Run(name, func(t *testing.T) {
			st := newStore(t)
			rec := importInto(t, st, b.Layout(t, tt.d))
			folders, err := st.Folders(rec, store.Format{File: "erofs"})
			if err != nil || len(folders) != tt.layers {
				t.Errorf("folders %q, %v; want %d", folders, err, tt.layers)
			}
		})
	}
}

// TestImportEmptyLayerOfArchive: a layer without a byte in a docker archive is one without files.
func TestImportEmptyLayerOfArchive(t *testing.T) {
	tarball := layerTar(t, 1)
	path := imagetest.Write(t, "x.tar", imagetest.FileTar(t, map[string][]byte{
		"c.json": configOf(t, tarball, []byte{}), "l.tar": tarball, "empty.tar": {},
		"manifest.json": []byte(`[{"Config":"c.json","RepoTags":["app:v1"],"Layers":["l.tar","empty.tar"]}]`)}))
	st := newStore(t)
	rec := importInto(t, st, "docker-archive:"+path)
	if folders, err := st.Folders(rec, store.Format{File: "erofs"}); err != nil || len(folders) != 2 {
		t.Errorf("folders %q, %v; want 2", folders, err)
	}
}

// TestImportNames: images of files of one name in several folders are told apart in the store.
func TestImportNames(t *testing.T) {
	b := imagetest.Blobs{}
	parent := t.TempDir()
	layout := func(dir string, n int) string {
		path := filepath.Join(parent, dir)
		from := b.Layout(t, b.Image(t, nil, imagetest.Layer{Tar: layerTar(t, n)}))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Rename(from, path)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	st := newStore(t)
	first := layout("a/build", 1)
	for _, tt := range []struct{ path, want string }{
		{first, "build:latest"},
		{layout("b/build", 2), "b/build:latest"},
		{layout("c/b/build", 3), "c/b/build:latest"},
		{layout("d/build", 1), "build:latest"}, // the same image
		{first, "build:latest"},
	} {
		if rec := importInto(t, st, tt.path); rec.Name != tt.want {
			t.Errorf("%s is called %q, want %q", tt.path, rec.Name, tt.want)
		}
	}
	// A file that has changed since is the same image still.
	if err := os.RemoveAll(filepath.Join(parent, "b/build")); err != nil {
		t.Fatal(err)
	}
	if rec := importInto(t, st, layout("b/build", 4)); rec.Name != "b/build:latest" {
		t.Errorf("a new image in the same place is called %q", rec.Name)
	}
	if all, err := st.Images(); err != nil || len(all) != 3 {
		t.Errorf("%d images, %v; want 3", len(all), err)
	}
}
