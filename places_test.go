package strata_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/layerdir"
)

func erofsLayer(t *testing.T, entries ...treetest.Entry) string {
	t.Helper()
	dir := t.TempDir()
	_, err := layerdir.Convert(t.Context(), layerdir.Options{Tar: bytes.NewReader(treetest.Tar(t, entries...)),
		Dir: dir, Format: layerdir.EROFS})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestCheckPlacesReads: layers are read as far down as they decide what is seen, and not after the context's end.
func TestCheckPlacesReads(t *testing.T) {
	damaged := erofsLayer(t, treetest.Entry{Name: "f"})
	image := filepath.Join(damaged, layerdir.EROFS.FileName())
	fi, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	const head = 2048 // with the super block
	if err := errors.Join(os.Truncate(image, head), os.Truncate(image, fi.Size())); err != nil {
		t.Fatal(err)
	}
	top := erofsLayer(t, treetest.Entry{Name: "f"}, treetest.Entry{Name: "d/", Type: tar.TypeDir},
		treetest.Entry{Name: "gone/", Type: tar.TypeDir}, treetest.Entry{Name: "gone/.wh..wh..opq"})
	gave := errors.New("gave up")
	cancelled, cancel := context.WithCancelCause(t.Context())
	cancel(gave)
	for _, c := range []struct {
		ctx  context.Context
		to   string
		want error
	}{
		{t.Context(), "/f", strata.ErrPlace}, {t.Context(), "/f/x/y", strata.ErrPlace}, {t.Context(), "/d", nil},
		{t.Context(), "/gone/x", nil}, {t.Context(), "/d/x", nil}, {cancelled, "/f", gave},
	} {
		s := &specs.Spec{Mounts: []specs.Mount{{Type: "tmpfs", Destination: c.to}}}
		if err := strata.CheckPlaces(c.ctx, s, []string{top, damaged}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.to, err, c.want)
		}
		if err := strata.CheckPlaces(c.ctx, s, []string{damaged, top}); !errors.Is(err, context.Cause(c.ctx)) {
			t.Errorf("%s below a damaged layer: %v", c.to, err)
		}
	}
}

// TestCheckPlaces: what several layers show together tells where something can be mounted, as their overlay would.
func TestCheckPlaces(t *testing.T) {
	layer := func(entries ...treetest.Entry) string { return erofsLayer(t, entries...) }
	dir := func(name string) treetest.Entry { return treetest.Entry{Name: name, Type: tar.TypeDir} }
	file := func(name string) treetest.Entry { return treetest.Entry{Name: name} }
	sym := func(name, to string) treetest.Entry {
		return treetest.Entry{Name: name, Type: tar.TypeSymlink, Link: to}
	}
	layers := []string{
		layer(dir("a/"), file("a/.wh.gone"), file("a/turned"), dir("b/"), file("b/.wh..wh..opq"), sym("to", "up/../a")),
		layer(dir("a/"), file("a/gone"), dir("a/turned/"), dir("b/"), file("b/hidden"), dir("up/"),
			sym("loop", "loop")),
		layer(dir("a/"), file("a/base"), dir("b/deep/")),
	}
	volume := t.TempDir()
	one := filepath.Join(volume, "one")
	if err := os.WriteFile(one, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ source, to, want string }{
		{volume, "/a", ""}, {volume, "/a/gone", ""}, {volume, "/b/hidden", ""}, {one, "/b/deep", ""},
		{volume, "/to", ""}, {volume, "/new/x", ""}, {one, "/a/base", ""}, {one, "/a/turned", ""},
		{volume, "/a/base", `over the image's file "/a/base"`}, {volume, "/a/turned", `file "/a/turned"`},
		{volume, "/to/base", `file "/a/base"`}, {one, "/to", `over the image's folder "/a"`},
		{one, "/up", `folder "/up"`}, {volume, "/a/base/x/y", `below the image's file "/a/base"`},
		{volume, "/loop", "too many"}, {"no\x00path", "/a/base", ""},
	} {
		s := &specs.Spec{Mounts: []specs.Mount{{Type: "bind", Source: c.source, Destination: c.to}}}
		err := strata.CheckPlaces(t.Context(), s, layers)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s at %s: %v, want %q", c.source, c.to, err, c.want)
		}
		if err := strata.CheckPlaces(t.Context(), s, append([]string{t.TempDir()}, layers...)); err != nil {
			t.Errorf("with a layer that is not known: %v", err)
		}
	}
}
