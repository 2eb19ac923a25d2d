package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/test/imagetest"
	"github.com/stratavm/strata/test/leaktest"
)

func layerTar(t testing.TB, n int) []byte {
	return treetest.Tar(t, treetest.Entry{Name: fmt.Sprintf("file%d", n),
		Body: strings.Repeat(fmt.Sprintf("layer %d ", n), 50_000)})
}

// read reads all layers to their end.
func read(ctx context.Context, img *image.Image) ([][]byte, error) {
	var out [][]byte
	for _, l := range img.Layers {
		r, err := l.Open(ctx, nil)
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

func open(t testing.TB, text string, o image.Options) (*image.Image, error) {
	t.Helper()
	s, err := image.ParseSource(text)
	if err != nil {
		t.Fatal(err)
	}
	img, err := image.Open(t.Context(), s, o)
	if err == nil {
		t.Cleanup(func() {
			if err := img.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
	return img, err
}

var amd64 = image.Platform{OS: "linux", Architecture: "amd64"}

// good is an image with a layer of each compression.
func good(t testing.TB) (imagetest.Blobs, imagetest.Descriptor, [][]byte) {
	b := imagetest.Blobs{}
	tars := [][]byte{layerTar(t, 1), layerTar(t, 2), layerTar(t, 3)}
	d := b.Image(t, nil, imagetest.Layer{Tar: tars[0], Compression: "gzip"},
		imagetest.Layer{Tar: tars[1], Compression: "zstd"}, imagetest.Layer{Tar: tars[2]})
	return b, d, tars
}

func dockerArchive(t testing.TB, config []byte, tars ...[]byte) []byte {
	files := map[string][]byte{}
	name := strings.TrimPrefix(imagetest.Digest(config), "sha256:") + ".json"
	files[name] = config
	var layers []string
	for _, b := range tars {
		n := strings.TrimPrefix(imagetest.Digest(b), "sha256:") + "/layer.tar"
		files[n] = b
		layers = append(layers, `"`+n+`"`)
	}
	files["manifest.json"] = fmt.Appendf(nil, `[{"Config":%q,"RepoTags":["app:v1"],"Layers":[%s]}]`, name,
		strings.Join(layers, ","))
	return imagetest.FileTar(t, files)
}

func configOf(t testing.TB, tars ...[]byte) []byte {
	b := imagetest.Blobs{}
	var ls []imagetest.Layer
	for _, x := range tars {
		ls = append(ls, imagetest.Layer{Tar: x})
	}
	b.Image(t, nil, ls...)
	for _, c := range b {
		if bytes.Contains(c, []byte("diff_ids")) {
			return c
		}
	}
	t.Fatal("no configuration")
	return nil
}

// TestSources: every kind of source gives the same tars and the same configuration.
func TestSources(t *testing.T) {
	blobs, d, tars := good(t)
	layoutTar := blobs.LayoutTar(t, imagetest.Tagged(d, "v1"))
	archive := dockerArchive(t, configOf(t, tars...), tars...)
	reg := imagetest.NewRegistry(t, blobs)
	reg.Tags["v1"] = d
	dir := blobs.Layout(t, imagetest.Tagged(d, "v1"))
	for _, tt := range []struct{ source, name string }{
		{"oci:" + dir, "image:v1"},
		{"oci:" + dir + ":v1", "image:v1"},
		{dir, "image:v1"},
		{imagetest.Write(t, "a.tar", layoutTar), "a:v1"},
		{"oci-archive:" + imagetest.Write(t, "b.tar", layoutTar) + ":v1", "b:v1"},
		{imagetest.Write(t, "c.tar.gz", imagetest.Compress(t, "gzip", layoutTar)), "c:v1"},
		{imagetest.Write(t, "d.tar", archive), "docker.io/library/app:v1"},
		{"docker-archive:" + imagetest.Write(t, "e.tar", archive) + ":app:v1", "docker.io/library/app:v1"},
		{"docker-archive:" + imagetest.Write(t, "f.tar.zst", imagetest.Compress(t, "zstd", archive)),
			"docker.io/library/app:v1"},
		{reg.Host() + "/org/app:v1", reg.Host() + "/org/app:v1"},
		{"docker://" + reg.Host() + "/org/app@" + d.Digest, reg.Host() + "/org/app@" + d.Digest},
		{reg.Host() + "/org/app:v1@" + d.Digest, reg.Host() + "/org/app@" + d.Digest}, // the digest says it
		{reg.Host() + "/org/app:gone@" + d.Digest, reg.Host() + "/org/app@" + d.Digest},
	} {
		t.Run(strings.ReplaceAll(tt.source, "/", "_"), func(t *testing.T) {
			leaktest.Check(t)
			img, err := open(t, tt.source, image.Options{Platform: amd64})
			if err != nil {
				t.Fatal(err)
			}
			if img.Name != tt.name {
				t.Errorf("name %q, want %q", img.Name, tt.name)
			}
			want := image.Config{Entrypoint: []string{"/entry"}, Cmd: []string{"arg"}, Env: []string{"A=1", "PATH=/bin"},
				WorkingDir: "/work", User: "app:staff", Labels: map[string]string{"l": "v"}, StopSignal: "SIGINT"}
			if d := cmp.Diff(want, img.Config); d != "" {
				t.Error(d)
			}
			got, err := read(t.Context(), img)
			if err != nil {
				t.Fatal(err)
			}
			for i := range tars {
				if !bytes.Equal(got[i], tars[i]) {
					t.Errorf("layer %d differs", i)
				}
			}
			again, err := image.ParseSource(img.Source.String())
			if err != nil || again != img.Source {
				t.Errorf("%q read again is %v, %v", img.Source, again, err)
			}
		})
	}
}

func TestRootFS(t *testing.T) {
	tarball := treetest.Everything(t)
	for name, how := range map[string]string{"debian.tar": "", "debian.tar.gz": "gzip", "debian.tar.zst": "zstd"} {
		t.Run(name, func(t *testing.T) {
			leaktest.Check(t)
			img, err := open(t, imagetest.Write(t, name, imagetest.Compress(t, how, tarball)), image.Options{})
			if err != nil {
				t.Fatal(err)
			}
			got, err := read(t.Context(), img)
			if err != nil {
				t.Fatal(err)
			}
			if img.Name != "debian:latest" || len(got) != 1 || !bytes.Equal(got[0], tarball) ||
				img.Digest != imagetest.Digest(tarball) {
				t.Errorf("%s with %d layers, digest %s", img.Name, len(got), img.Digest)
			}
		})
	}
}

// TestHostile: what is wrong is found, named, and found before the end of the stream.
func TestHostile(t *testing.T) {
	tarball := layerTar(t, 1)
	gz := imagetest.Layer{Tar: tarball, Compression: "gzip"}
	other := imagetest.Digest([]byte("other"))
	for _, tt := range []struct {
		name string
		make func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor
		opts image.Options
		want error
		text string
	}{
		{name: "missing layer", make: func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor {
			d := b.Image(t, nil, gz)
			delete(b, imagetest.Digest(imagetest.Compress(t, "gzip", tarball)))
			return []imagetest.Descriptor{d}
		}, want: image.ErrNotFound, text: "blob sha256:"},
		{name: "missing manifest", make: func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor {
			return []imagetest.Descriptor{{MediaType: imagetest.OCIManifest, Size: 10, Digest: other}}
		}, want: image.ErrNotFound, text: other},
		{name: "layer of the same size with another content",
			make: func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor {
				d := b.Image(t, nil, imagetest.Layer{Tar: tarball})
				b[imagetest.Digest(tarball)] = append([]byte("x"), tarball[1:]...)
				return []imagetest.Descriptor{d}
			}, want: image.ErrCorrupt, text: "its digest is"},
		{name: "layer shorter than announced", make: func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor {
			d := b.Image(t, nil, imagetest.Layer{Tar: tarball})
			b[imagetest.Digest(tarball)] = tarball[:len(tarball)-512]
			return []imagetest.Descriptor{d}
		}, want: image.ErrCorrupt, text: "announced were"},
		{name: "damaged gzip", make: func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor {
			c := imagetest.Compress(t, "gzip", tarball)
			c[len(c)/2] ^= 0xff
			return []imagetest.Descriptor{b.Image(t, nil,
				imagetest.Layer{Tar: c, DiffID: imagetest.Digest(tarball), MediaType: imagetest.OCILayer + "+gzip"})}
		}, want: image.ErrCorrupt, text: "layer sha256:"},
		{name: "garbage after gzip", make: func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor {
			c := append(imagetest.Compress(t, "gzip", tarball), "garbage garbage"...)
			return []imagetest.Descriptor{b.Image(t, nil,
				imagetest.Layer{Tar: c, DiffID: imagetest.Digest(tarball), MediaType: imagetest.OCILayer + "+gzip"})}
		}, want: image.ErrCorrupt, text: "layer sha256:"},
		{name: "wrong diff id", make: func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor {
			return []imagetest.Descriptor{b.Image(t, nil, imagetest.Layer{Tar: tarball, Compression: "zstd", DiffID: other})}
		}, want: image.ErrCorrupt, text: "tar of layer"},
		{name: "diff id that is a path", make: func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor {
			return []imagetest.Descriptor{b.Image(t, nil, imagetest.Layer{Tar: tarball, DiffID: "sha256:../../../etc/passwd"})}
		}, want: image.ErrInvalid, text: "configuration"},
		{name: "bomb", make: func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor {
			return []imagetest.Descriptor{b.Image(t, nil, imagetest.Layer{Tar: make([]byte, 8<<20), Compression: "gzip"})}
		}, opts: image.Options{MaxLayerBytes: 1 << 20}, want: image.ErrTooLarge, text: "more than 1048576 bytes"},
		{name: "foreign layer that is missing", make: func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor {
			d := b.Image(t, nil, imagetest.Layer{Tar: tarball,
				MediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"})
			delete(b, imagetest.Digest(tarball))
			return []imagetest.Descriptor{d}
		}, want: image.ErrNotFound, text: "foreign layer"},
		{name: "encrypted layer", make: func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor {
			return []imagetest.Descriptor{b.Image(t, nil,
				imagetest.Layer{Tar: tarball, MediaType: imagetest.OCILayer + "+gzip+encrypted"})}
		}, want: image.ErrUnsupported, text: "encrypted"},
		{name: "unknown layer type", make: func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor {
			return []imagetest.Descriptor{b.Image(t, nil, imagetest.Layer{Tar: tarball, MediaType: "application/x-surprise"})}
		}, want: image.ErrUnsupported, text: `"application/x-surprise"`},
		{name: "chart", make: func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor {
			c := b.Add("application/vnd.cncf.helm.config.v1+json", []byte("{}"))
			return []imagetest.Descriptor{b.AddJSON(t, imagetest.OCIManifest,
				map[string]any{"schemaVersion": 2, "config": c, "layers": []string{}})}
		}, want: image.ErrUnsupported, text: "chart"},
		{name: "manifest and index at once", make: func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor {
			return []imagetest.Descriptor{b.AddJSON(t, imagetest.OCIManifest,
				map[string]any{"layers": []int{}, "manifests": []int{}})}
		}, want: image.ErrInvalid, text: "claims to be"},
		{name: "layers and diff ids do not match", make: func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor {
			c := b.AddJSON(t, imagetest.OCIConfig,
				map[string]any{"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"diff_ids": []string{}}})
			l := b.Add(imagetest.OCILayer, tarball)
			return []imagetest.Descriptor{b.AddJSON(t, imagetest.OCIManifest, map[string]any{"config": c, "layers": []any{l}})}
		}, want: image.ErrInvalid, text: "the manifest has 1 layers, the configuration 0"},
		{name: "nested too deep", make: func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor {
			d := b.Image(t, nil, gz)
			for range 8 {
				d = b.Index(t, d)
			}
			return []imagetest.Descriptor{d}
		}, want: image.ErrInvalid, text: "inside each other"},
		{name: "huge manifest", make: func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor {
			return []imagetest.Descriptor{b.Add(imagetest.OCIManifest, bytes.Repeat([]byte(" "), 5<<20))}
		}, want: image.ErrTooLarge, text: "at most"},
		{name: "wide index", make: func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor {
			var list []imagetest.Descriptor
			for i := range 200 {
				list = append(list, b.Image(t, &imagetest.Platform{OS: "linux", Architecture: fmt.Sprintf("odd%d", i)}))
			}
			return list
		}, want: image.ErrTooLarge, text: "more than 64"},
		{name: "no image", make: func(*testing.T, imagetest.Blobs) []imagetest.Descriptor { return nil },
			want: image.ErrNotFound, text: "no image"},
		{name: "two names", make: func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor {
			return []imagetest.Descriptor{imagetest.Tagged(b.Image(t, nil, gz), "one"), imagetest.Tagged(b.Image(t, nil), "two")}
		}, want: image.ErrAmbiguous, text: "one, two"},
		{name: "not JSON", make: func(t *testing.T, b imagetest.Blobs) []imagetest.Descriptor {
			return []imagetest.Descriptor{b.Add(imagetest.OCIManifest, []byte("garbage"))}
		}, want: image.ErrInvalid, text: "manifest sha256:"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leaktest.Check(t)
			b := imagetest.Blobs{}
			list := tt.make(t, b)
			if tt.opts.Platform == (image.Platform{}) {
				tt.opts.Platform = amd64
			}
			img, err := open(t, b.Layout(t, list...), tt.opts)
			if err == nil {
				_, err = read(t.Context(), img)
			}
			if !errors.Is(err, tt.want) || !strings.Contains(fmt.Sprint(err), tt.text) {
				t.Errorf("error %v, want %v with %q", err, tt.want, tt.text)
			}
		})
	}
}

func TestLinkOutOfLayout(t *testing.T) {
	b := imagetest.Blobs{}
	tarball := layerTar(t, 1)
	d := b.Image(t, nil, imagetest.Layer{Tar: tarball})
	dir := b.Layout(t, d)
	blob := filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(imagetest.Digest(tarball), "sha256:"))
	outside := imagetest.Write(t, "outside", tarball)
	if err := errors.Join(os.Remove(blob), os.Symlink(outside, blob)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(blob); err != nil {
		t.Skip("no link is made here, without an error, as under Wine")
	}
	img, err := open(t, dir, image.Options{Platform: amd64})
	if err != nil {
		t.Fatal(err)
	}
	_, err = read(t.Context(), img)
	if !errors.Is(err, image.ErrUnsupported) || !strings.Contains(err.Error(), "leads out of the layout") {
		t.Errorf("error %v, want one that says that the link leads out of the layout", err)
	}
}

func TestPlatforms(t *testing.T) {
	b := imagetest.Blobs{}
	one := func(p imagetest.Platform) imagetest.Descriptor {
		d := b.Image(t, &p, imagetest.Layer{Tar: layerTar(t, len(b))})
		d.Platform = &p
		return d
	}
	attestation := b.Image(t, &imagetest.Platform{OS: "unknown", Architecture: "unknown"})
	attestation.Platform = &imagetest.Platform{OS: "unknown", Architecture: "unknown"}
	index := b.Index(t, attestation,
		one(imagetest.Platform{OS: "windows", Architecture: "amd64", OSVersion: "10.0.20348.1"}),
		one(imagetest.Platform{OS: "linux", Architecture: "amd64"}),
		one(imagetest.Platform{OS: "linux", Architecture: "arm", Variant: "v6"}),
		one(imagetest.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}),
		one(imagetest.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}))
	dir := b.Layout(t, index)
	for want, got := range map[string]string{
		"linux/amd64": "linux/amd64", "linux/arm": "linux/arm/v7", "linux/arm/v6": "linux/arm/v6",
		"linux/arm64":   "linux/arm64/v8",
		"windows/amd64": "windows/amd64:10.0.20348.1", "linux/amd64/v3": "linux/amd64",
	} {
		p, err := image.ParsePlatform(want)
		if err != nil {
			t.Fatal(err)
		}
		img, err := open(t, dir, image.Options{Platform: p})
		if err != nil {
			t.Errorf("%s: %v", want, err)
			continue
		}
		if img.Platform.String() != got {
			t.Errorf("%s gave %s, want %s", want, img.Platform, got)
		}
		if err := img.CheckLinux(); errors.Is(err, image.ErrUnsupported) != (img.Platform.OS == "windows") {
			t.Errorf("%s: CheckLinux says %v", got, err)
		}
	}
	_, err := open(t, dir, image.Options{Platform: image.Platform{OS: "linux", Architecture: "s390x"}})
	if !errors.Is(err, image.ErrPlatform) || !strings.Contains(err.Error(), "linux/arm/v6, linux/arm/v7") {
		t.Errorf("s390x: %v", err)
	}
}

// TestWindows: foreign layers do not keep a Windows image from being described.
func TestWindows(t *testing.T) {
	b := imagetest.Blobs{}
	d := b.Image(t, &imagetest.Platform{OS: "windows", Architecture: "amd64", OSVersion: "10.0.17763.1"},
		imagetest.Layer{Tar: layerTar(t, 1), MediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"})
	delete(b, imagetest.Digest(layerTar(t, 1)))
	img, err := open(t, b.Layout(t, d), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := img.CheckLinux(); !errors.Is(err, image.ErrUnsupported) || !strings.Contains(err.Error(), "Windows") {
		t.Errorf("CheckLinux: %v", err)
	}
	if _, err := img.Layers[0].Open(t.Context(), nil); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("open a foreign layer: %v", err)
	}
}

func TestParseSource(t *testing.T) {
	dir := t.TempDir()
	colon := filepath.Join(dir, "with:colon")
	if runtime.GOOS == "windows" {
		colon = dir // no name has one there
	} else if err := os.Mkdir(colon, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ in, want, text string }{
		{in: "debian", want: "docker://docker.io/library/debian:latest"},
		{in: "debian:12", want: "docker://docker.io/library/debian:12"},
		{in: "docker://localhost:5000/a/b", want: "docker://localhost:5000/a/b:latest"},
		{in: "oci:" + dir + ":v:1", want: "oci:" + dir + ":v:1"},
		{in: dir, want: "file:" + dir},
		{in: "docker-archive:" + dir + "/x.tar:app:v1", want: "docker-archive:" + filepath.Join(dir, "x.tar") + ":app:v1"},
		{in: "oci:" + colon + ":v:1", want: "oci:" + colon + ":v:1"},
		{in: colon + ":v:1", want: "file:" + colon + ":v:1"},
		{in: "oci:" + colon, want: "oci:" + colon},
		{in: "", text: "empty"},
		{in: "a\nb", text: "control"},
		{in: "https://example.org/app", text: "leave out https://"},
		{in: "missing.tar", text: "no file"},
		{in: "UPPER/Case", text: "no reference"},
		{in: "app@sha256:12", text: "no reference"},
		{in: "tar:", text: "path is empty"},
	} {
		s, err := image.ParseSource(tt.in)
		if tt.text != "" {
			if !errors.Is(err, image.ErrSource) || !strings.Contains(fmt.Sprint(err), tt.text) {
				t.Errorf("%q: error %v, want one with %q", tt.in, err, tt.text)
			}
			continue
		}
		if err != nil || s.String() != tt.want {
			t.Errorf("%q: %q, %v; want %q", tt.in, s, err, tt.want)
		}
	}
}
