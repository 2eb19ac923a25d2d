package strata_test

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/layerdir"
)

// TestCheckPlaces: what several layers show together tells where something can be mounted, as their overlay would.
func TestCheckPlaces(t *testing.T) {
	layer := func(entries ...treetest.Entry) string {
		dir := t.TempDir()
		_, err := layerdir.Convert(t.Context(), layerdir.Options{Tar: bytes.NewReader(treetest.Tar(t, entries...)),
			Dir: dir, Format: layerdir.EROFS})
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
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
		{volume, "/loop", "too many"},
	} {
		s := &specs.Spec{Mounts: []specs.Mount{{Type: "bind", Source: c.source, Destination: c.to}}}
		err := strata.CheckPlaces(s, layers)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s at %s: %v, want %q", c.source, c.to, err, c.want)
		}
		if err := strata.CheckPlaces(s, append([]string{t.TempDir()}, layers...)); err != nil {
			t.Errorf("with a layer that is not known: %v", err)
		}
	}
}
