package image_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/test/imagetest"
	"github.com/stratavm/strata/test/leaktest"
)

// asSHA512 gives each blob that d leads to the name that SHA-512 gives it: the layers, the configuration, the manifest.
func asSHA512(t *testing.T, b imagetest.Blobs, d imagetest.Descriptor) (imagetest.Blobs, imagetest.Descriptor) {
	t.Helper()
	out := imagetest.Blobs{}
	rename := func(d imagetest.Descriptor, content []byte) imagetest.Descriptor {
		d.Digest, d.Size = fmt.Sprintf("sha512:%x", sha512.Sum512(content)), int64(len(content))
		out[d.Digest] = content
		return d
	}
	var manifest struct {
		SchemaVersion int                    `json:"schemaVersion"`
		MediaType     string                 `json:"mediaType"`
		Config        imagetest.Descriptor   `json:"config"`
		Layers        []imagetest.Descriptor `json:"layers"`
	}
	if err := json.Unmarshal(b[d.Digest], &manifest); err != nil {
		t.Fatal(err)
	}
	manifest.Config = rename(manifest.Config, b[manifest.Config.Digest])
	for i, l := range manifest.Layers {
		manifest.Layers[i] = rename(l, b[l.Digest])
	}
	document, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	return out, rename(d, document)
}

// TestSHA512: blobs that SHA-512 names are found and checked as those of SHA-256 are. A layer's content is called by
// SHA-256 alone: the store has its layers under that name.
func TestSHA512(t *testing.T) {
	leaktest.Check(t)
	layer := layerTar(t, 1)
	sha256 := imagetest.Blobs{}
	d := sha256.Image(t, nil, imagetest.Layer{Tar: layer, Compression: "gzip"})
	blobs, d512 := asSHA512(t, sha256, d)
	img, err := open(t, blobs.Layout(t, d512), image.Options{Platform: amd64})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := read(t.Context(), img); err != nil || len(got) != 1 || !bytes.Equal(got[0], layer) ||
		img.Digest != d512.Digest {
		t.Errorf("image %s with %d layers, %v", img.Digest, len(got), err)
	}
	for _, name := range slices.Sorted(maps.Keys(blobs)) {
		damaged := maps.Clone(blobs)
		damaged[name] = slices.Clone(blobs[name])
		damaged[name][len(damaged[name])-1] ^= 1
		img, err := open(t, damaged.Layout(t, d512), image.Options{Platform: amd64})
		if err == nil {
			_, err = read(t.Context(), img)
		}
		if !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("%s is damaged: error %v, want %v", name, err, image.ErrCorrupt)
		}
	}
	content := fmt.Sprintf("sha512:%x", sha512.Sum512(layer))
	other := imagetest.Blobs{}
	_, err = open(t, other.Layout(t, other.Image(t, nil, imagetest.Layer{Tar: layer, DiffID: content})),
		image.Options{Platform: amd64})
	if !errors.Is(err, image.ErrUnsupported) || !strings.Contains(err.Error(), content+": only sha256") {
		t.Errorf("SHA-512 of a layer's content: error %v, want %v", err, image.ErrUnsupported)
	}
}

// TestLayerTypesRefused: a type that does not say of a blob that it is a layer is refused by its name, as by docker,
// whatever is in the blob.
func TestLayerTypesRefused(t *testing.T) {
	layer := layerTar(t, 1)
	for _, mediaType := range []string{"application/octet-stream", "", "application/x-tar",
		"application/vnd.in-toto+json", "application/vnd.docker.container.image.rootfs.diff+x-gtar",
		imagetest.OCILayer + "+lz4"} {
		t.Run(mediaType, func(t *testing.T) {
			leaktest.Check(t)
			b := imagetest.Blobs{}
			config := b.AddJSON(t, imagetest.OCIConfig, map[string]any{"os": "linux", "architecture": "amd64",
				"rootfs": map[string]any{"type": "layers", "diff_ids": []string{imagetest.Digest(layer)}}})
			d := b.AddJSON(t, imagetest.OCIManifest, map[string]any{"schemaVersion": 2,
				"mediaType": imagetest.OCIManifest, "config": config, "layers": []any{b.Add(mediaType, layer)}})
			_, err := open(t, b.Layout(t, d), image.Options{Platform: amd64})
			said := fmt.Sprintf("media type %q", mediaType)
			if !errors.Is(err, image.ErrUnsupported) || !strings.Contains(err.Error(), said) {
				t.Errorf("error %v, want %v", err, image.ErrUnsupported)
			}
		})
	}
}
