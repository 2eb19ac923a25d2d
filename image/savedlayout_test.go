package image_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/test/imagetest"
)

// savedArchive is what "docker save" writes since version 25: an OCI layout and a manifest.json in one tar. The tag of
// an image is in the one annotation of the layout, the whole name in the other and in manifest.json, where it is short.
func savedArchive(t *testing.T, images map[string][]byte) []byte {
	t.Helper()
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	b := imagetest.Blobs{}
	var list []imagetest.Descriptor
	var manifest []entry
	path := func(d imagetest.Descriptor) string { return "blobs/" + strings.Replace(d.Digest, ":", "/", 1) }
	for name, layer := range images {
		d := imagetest.Tagged(b.Image(t, nil, imagetest.Layer{Tar: layer}), "latest")
		d.Annotations["io.containerd.image.name"] = "docker.io/library/" + name + ":latest"
		list = append(list, d)
		var m struct {
			Config imagetest.Descriptor
			Layers []imagetest.Descriptor
		}
		if err := json.Unmarshal(b[d.Digest], &m); err != nil {
			t.Fatal(err)
		}
		manifest = append(manifest, entry{path(m.Config), []string{name + ":latest"}, []string{path(m.Layers[0])}})
	}
	raw, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	files := b.Files(t, list...)
	files["manifest.json"] = raw
	return imagetest.FileTar(t, files)
}

// TestSavedLayout: the images of an archive that is a layout and a docker archive are told apart by their whole names.
func TestSavedLayout(t *testing.T) {
	one, two := layerTar(t, 1), layerTar(t, 2)
	both := imagetest.Write(t, "x.tar", savedArchive(t, map[string][]byte{"one": one, "two": two}))
	single := imagetest.Write(t, "saved.tar", savedArchive(t, map[string][]byte{"myapp": one}))
	for _, tt := range []struct {
		source string
		layer  []byte // nil: it is ambiguous, and the error lists the names
		called string
	}{
		{both, nil, ""},
		{both + ":latest", nil, ""},
		{"docker-archive:" + both, nil, ""},
		{both + ":one:latest", one, "docker.io/library/one:latest"},
		{both + ":two:latest", two, "docker.io/library/two:latest"},
		{"docker-archive:" + both + ":two:latest", two, "docker.io/library/two:latest"},
		{"oci-archive:" + both + ":two:latest", two, "docker.io/library/two:latest"},
		{single, one, "docker.io/library/myapp:latest"},
		{"docker-archive:" + single, one, "docker.io/library/myapp:latest"},
		{"oci-archive:" + single, one, "docker.io/library/myapp:latest"},
	} {
		t.Run(strings.NewReplacer(both, "both", single, "single").Replace(tt.source), func(t *testing.T) {
			img, err := open(t, tt.source, image.Options{Platform: amd64})
			if tt.layer == nil {
				if !errors.Is(err, image.ErrAmbiguous) || !strings.Contains(err.Error(), "one:latest, ") ||
					!strings.Contains(err.Error(), "two:latest") {
					t.Errorf("error %v, want one that lists both names", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if img.Layers[0].DiffID != imagetest.Digest(tt.layer) || img.Name != tt.called {
				t.Errorf("layer %s, called %q; want %s, %q", img.Layers[0].DiffID, img.Name, imagetest.Digest(tt.layer), tt.called)
			}
		})
	}
}
