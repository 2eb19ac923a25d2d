// Package imagetest makes images for tests, good ones and bad ones: as an OCI layout, as tars, and in a
// registry on loopback.
package imagetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// Media types of what tests make.
const (
	OCIIndex    = "application/vnd.oci.image.index.v1+json"
	OCIManifest = "application/vnd.oci.image.manifest.v1+json"
	OCIConfig   = "application/vnd.oci.image.config.v1+json"
	OCILayer    = "application/vnd.oci.image.layer.v1.tar"
)

// Descriptor names a blob.
type Descriptor struct {
	MediaType   string            `json:"mediaType"`
	Size        int64             `json:"size"`
	Digest      string            `json:"digest"`
	Platform    *Platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Platform of an image.
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
	OSVersion    string `json:"os.version,omitempty"`
}

// Layer is a layer of an image to be made.
type Layer struct {
	Tar         []byte
	Compression string // "", "gzip" or "zstd"
	MediaType   string // empty: the right one
	DiffID      string // empty: the right one
}

// Blobs is a set of blobs by digest. Tests damage it as they like.
type Blobs map[string][]byte

// Digest is the digest of b.
func Digest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// Add adds a blob and describes it.
func (s Blobs) Add(mediaType string, b []byte) Descriptor {
	d := Descriptor{MediaType: mediaType, Size: int64(len(b)), Digest: Digest(b)}
	s[d.Digest] = b
	return d
}

// AddJSON adds a document.
func (s Blobs) AddJSON(t testing.TB, mediaType string, v any) Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return s.Add(mediaType, b)
}

// Compress compresses b.
func Compress(t testing.TB, how string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var err error
	switch how {
	case "":
		return b
	case "gzip":
		w := gzip.NewWriter(&out)
		_, err = w.Write(b)
		if err == nil {
			err = w.Close()
		}
	case "zstd":
		var w *zstd.Encoder
		if w, err = zstd.NewWriter(&out); err == nil {
			if _, err = w.Write(b); err == nil {
				err = w.Close()
			}
		}
	default:
		t.Fatalf("compression %q", how)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Config is the configuration of images that have no other.
var Config = map[string]any{
	"Entrypoint": []string{"/entry"}, "Cmd": []string{"arg"}, "Env": []string{"A=1", "PATH=/bin"},
	"WorkingDir": "/work", "User": "app:staff", "Labels": map[string]string{"l": "v"}, "StopSignal": "SIGINT",
}

// Image adds an image and describes its manifest. Without a platform it is for linux/amd64.
func (s Blobs) Image(t testing.TB, p *Platform, layers ...Layer) Descriptor {
	t.Helper()
	return s.ImageWith(t, p, nil, layers...)
}

// ImageWith adds an image whose configuration has other fields: change may set and delete any of them.
func (s Blobs) ImageWith(t testing.TB, p *Platform, change func(config map[string]any), layers ...Layer) Descriptor {
	t.Helper()
	if p == nil {
		p = &Platform{OS: "linux", Architecture: "amd64"}
	}
	diffIDs := []string{}
	list := []Descriptor{}
	for _, l := range layers {
		if l.DiffID == "" {
			l.DiffID = Digest(l.Tar)
		}
		if l.MediaType == "" {
			l.MediaType = OCILayer
			if l.Compression != "" {
				l.MediaType += "+" + l.Compression
			}
		}
		diffIDs = append(diffIDs, l.DiffID)
		list = append(list, s.Add(l.MediaType, Compress(t, l.Compression, l.Tar)))
	}
	document := map[string]any{
		"os": p.OS, "architecture": p.Architecture, "variant": p.Variant, "os.version": p.OSVersion, "config": Config,
		"created": "2024-05-06T07:08:09Z", "rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	}
	if change != nil {
		change(document)
	}
	config := s.AddJSON(t, OCIConfig, document)
	return s.AddJSON(t, OCIManifest, map[string]any{"schemaVersion": 2, "mediaType": OCIManifest, "config": config,
		"layers": list})
}

// Index adds an index.
func (s Blobs) Index(t testing.TB, list ...Descriptor) Descriptor {
	t.Helper()
	return s.AddJSON(t, OCIIndex, map[string]any{"schemaVersion": 2, "mediaType": OCIIndex, "manifests": list})
}

// Tagged names a descriptor in a layout.
func Tagged(d Descriptor, tag string) Descriptor {
	d.Annotations = map[string]string{"org.opencontainers.image.ref.name": tag}
	return d
}

// Files returns the files of a layout by their names.
func (s Blobs) Files(t testing.TB, list ...Descriptor) map[string][]byte {
	t.Helper()
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": list})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": index}
	for d, b := range s {
		out["blobs/"+strings.Replace(d, ":", "/", 1)] = b
	}
	return out
}

// Layout writes an OCI layout to a new directory.
func (s Blobs) Layout(t testing.TB, list ...Descriptor) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "image")
	for name, b := range s.Files(t, list...) {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// LayoutTar returns an OCI layout as a tar.
func (s Blobs) LayoutTar(t testing.TB, list ...Descriptor) []byte {
	t.Helper()
	return FileTar(t, s.Files(t, list...))
}

// FileTar creates a tar of regular files, in the order of their names.
func FileTar(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[name]))})
		if err == nil {
			_, err = w.Write(files[name])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Write writes a file to a new directory and returns its path.
func Write(t testing.TB, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
