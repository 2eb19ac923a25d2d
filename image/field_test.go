package image_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/test/imagetest"
	"github.com/stratavm/strata/test/leaktest"
)

// entry is a file of a tar that is written in a given order.
type entry struct {
	name, link string
	typ        byte
	body       []byte
}

func orderedTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		if e.typ == 0 {
			e.typ = tar.TypeReg
		}
		err := w.WriteHeader(&tar.Header{Name: e.name, Linkname: e.link, Typeflag: e.typ, Mode: 0o644,
			Size: int64(len(e.body))})
		if err == nil {
			_, err = w.Write(e.body)
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

// rootTar is a small root file system.
func rootTar(t testing.TB) []byte {
	return treetest.Tar(t, treetest.Entry{Name: "etc/os-release", Body: "NAME=small"},
		treetest.Entry{Name: "manifest.json", Body: "{}"})
}

// TestArchiveForms: an archive is recognised by all that it holds, in whatever order and however its names are written.
func TestArchiveForms(t *testing.T) {
	layer := layerTar(t, 1)
	config := configOf(t, layer)
	hexa := strings.TrimPrefix(imagetest.Digest(config), "sha256:")
	manifest := func(config, layer string) []byte {
		return fmt.Appendf(nil, `[{"Config":%q,"RepoTags":["app:v1"],"Layers":[%q]}]`, config, layer)
	}
	blobs := imagetest.Blobs{}
	d := blobs.Image(t, nil, imagetest.Layer{Tar: layer})
	layout := func(first ...entry) []byte {
		r := tar.NewReader(bytes.NewReader(blobs.LayoutTar(t, imagetest.Tagged(d, "v1"))))
		for {
			h, err := r.Next()
			if err == io.EOF {
				return orderedTar(t, first...)
			}
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			first = append(first, entry{name: h.Name, body: b})
		}
	}
	for _, tt := range []struct {
		name string
		tar  []byte
	}{
		{"manifest first", orderedTar(t, entry{name: "manifest.json", body: manifest("config.json", "layer.tar")},
			entry{name: "config.json", body: config}, entry{name: "layer.tar", body: layer})},
		{"config first", orderedTar(t, entry{name: "config.json", body: config}, entry{name: "layer.tar", body: layer},
			entry{name: "manifest.json", body: manifest("config.json", "layer.tar")})},
		{"layer first", orderedTar(t, entry{name: "app-layer.tar", body: layer}, entry{name: "config.json", body: config},
			entry{name: "manifest.json", body: manifest("config.json", "app-layer.tar")})},
		{"names with a slash", orderedTar(t, entry{name: "/" + hexa + ".json", body: config},
			entry{name: "/x.tar", body: layer},
			entry{name: "/manifest.json", body: manifest(hexa+".json", "/x.tar")})},
		{"all with a slash", orderedTar(t, entry{name: "/c.json", body: config}, entry{name: "/x.tar", body: layer},
			entry{name: "/manifest.json", body: manifest("/c.json", "/x.tar")})},
		{"names with a dot", orderedTar(t, entry{name: "./", typ: tar.TypeDir}, entry{name: "./c.json", body: config},
			entry{name: "./x.tar", body: layer},
			entry{name: "./manifest.json", body: manifest("c.json", "x.tar")})},
		{"names that go up and stay inside",
			orderedTar(t, entry{name: "a/../c.json", body: config}, entry{name: "../x.tar", body: layer},
				entry{name: "a/../manifest.json", body: manifest("c.json", "x.tar")})},
		{"symbolic link", orderedTar(t, entry{name: "1/layer.tar", body: layer},
			entry{name: "2/layer.tar", link: "../1/layer.tar", typ: tar.TypeSymlink},
			entry{name: "c.json", body: config}, entry{name: "manifest.json", body: manifest("c.json", "2/layer.tar")})},
		{"symbolic link over the top", orderedTar(t, entry{name: "1/layer.tar", body: layer},
			entry{name: "2/layer.tar", link: "../../1/layer.tar", typ: tar.TypeSymlink},
			entry{name: "c.json", body: config}, entry{name: "manifest.json", body: manifest("c.json", "2/layer.tar")})},
		{"hard link", orderedTar(t, entry{name: "1/layer.tar", body: layer},
			entry{name: "2/layer.tar", link: "./1/layer.tar", typ: tar.TypeLink},
			entry{name: "c.json", body: config}, entry{name: "manifest.json", body: manifest("c.json", "2/layer.tar")})},
		{"layout", layout()},
		{"layout with a folder first", layout(entry{name: "ingest/", typ: tar.TypeDir})},
		{"layout with files first", layout(entry{name: "README", body: []byte("x")},
			entry{name: "some/file", body: []byte("y")})},
	} {
		for _, how := range []string{"", "gzip", "zstd"} {
			t.Run(tt.name+" "+how, func(t *testing.T) {
				leaktest.Check(t)
				img, err := open(t, imagetest.Write(t, "image.tar", imagetest.Compress(t, how, tt.tar)),
					image.Options{Platform: amd64})
				if err != nil {
					t.Fatal(err)
				}
				got, err := read(t.Context(), img)
				if err != nil || len(got) != 1 || !bytes.Equal(got[0], layer) {
					t.Errorf("%d layers of the image, %v", len(got), err)
				}
				if len(img.Config.Entrypoint) == 0 {
					t.Error("it was taken for a bare root file system")
				}
			})
		}
	}
}

// TestBareRoots: a tar is a root file system when it looks like one or is said to be one.
func TestBareRoots(t *testing.T) {
	photos := treetest.Tar(t, treetest.Entry{Name: "photos/1.jpg", Body: "x"})
	for _, tt := range []struct {
		name, prefix string
		tar          []byte
		any          bool
		want         error
	}{
		{name: "root", tar: rootTar(t)},
		{name: "whiteout of a root", tar: treetest.Tar(t, treetest.Entry{Name: ".wh.usr"})},
		{name: "something else", tar: photos, want: image.ErrNotRoot},
		{name: "something else, said to be one", prefix: "tar:", tar: photos},
		{name: "something else, accepted", any: true, tar: photos},
		{name: "nothing", tar: make([]byte, 1024), want: image.ErrNotRoot},
		{name: "part of an image", tar: imagetest.FileTar(t,
			map[string][]byte{"oci-layout": []byte("{}"), "blobs/sha256/a": []byte("x")}), want: image.ErrNotRoot},
		{name: "cut off", tar: orderedTar(t, entry{name: "photos/1.jpg", body: make([]byte, 2000)})[:1000],
			want: image.ErrCorrupt},
	} {
		for _, how := range []string{"", "gzip"} {
			t.Run(tt.name+" "+how, func(t *testing.T) {
				leaktest.Check(t)
				path := imagetest.Write(t, "root.tar", imagetest.Compress(t, how, tt.tar))
				img, err := open(t, tt.prefix+path, image.Options{AnyRoot: tt.any})
				if !errors.Is(err, tt.want) || errors.Is(tt.want, image.ErrNotRoot) && !strings.Contains(err.Error(), "tar:"+path) {
					t.Fatalf("error %v, want %v", err, tt.want)
				}
				if err == nil && (len(img.Layers) != 1 || img.Layers[0].DiffID != imagetest.Digest(tt.tar)) {
					t.Errorf("layers %+v", img.Layers)
				}
			})
		}
	}
}

// TestRootCompressions: what docker import and GNU tar unpack is unpacked, anything else is named.
func TestRootCompressions(t *testing.T) {
	root := rootTar(t)
	for _, tt := range []struct{ tool, suffix, text string }{
		{tool: "gzip", suffix: ".gz"}, {tool: "xz", suffix: ".xz"}, {tool: "bzip2", suffix: ".bz2"},
		{tool: "zstd", suffix: ".zst"},
		{tool: "lz4", suffix: ".lz4", text: "packed by lz4"}, {tool: "zip", text: "packed by zip"},
	} {
		t.Run(tt.tool, func(t *testing.T) {
			path := imagetest.Write(t, "rootfs.tar"+tt.suffix, []byte("PK\x03\x04 and more of a zip file"))
			if tt.suffix != "" {
				tool, err := exec.LookPath(tt.tool)
				if err != nil {
					t.Skipf("no %s here", tt.tool)
				}
				cmd := exec.CommandContext(t.Context(), tool, "-c")
				cmd.Stdin = bytes.NewReader(root)
				packed, err := cmd.Output()
				if err != nil {
					t.Fatal(err)
				}
				path = imagetest.Write(t, "rootfs.tar"+tt.suffix, packed)
			}
			img, err := open(t, path, image.Options{})
			if tt.text != "" {
				if !errors.Is(err, image.ErrUnsupported) || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("error %v, want %q", err, tt.text)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, err := read(t.Context(), img); err != nil || !bytes.Equal(got[0], root) || img.Name != "rootfs:latest" {
				t.Errorf("%s: %v", img.Name, err)
			}
		})
	}
}

// TestNames: a name stands for one image, or the error lists those there are.
func TestNames(t *testing.T) {
	b := imagetest.Blobs{}
	one, two := b.Image(t, nil, imagetest.Layer{Tar: layerTar(t, 1)}),
		b.Image(t, nil, imagetest.Layer{Tar: layerTar(t, 2)})
	arm := b.Image(t, &imagetest.Platform{OS: "linux", Architecture: "arm64"}, imagetest.Layer{Tar: layerTar(t, 3)})
	tag := imagetest.Tagged
	full := func(d imagetest.Descriptor, name string) imagetest.Descriptor {
		d = tag(d, name[strings.LastIndex(name, ":")+1:])
		d.Annotations["io.containerd.image.name"] = name
		return d
	}
	on := func(d imagetest.Descriptor, arch string) imagetest.Descriptor {
		d.Platform = &imagetest.Platform{OS: "linux", Architecture: arch}
		return d
	}
	docker25 := []imagetest.Descriptor{full(one, "docker.io/library/one:latest"),
		full(two, "docker.io/library/two:latest")}
	const ambiguous = "docker.io/library/one:latest, docker.io/library/two:latest"
	for _, tt := range []struct {
		what, name string
		list       []imagetest.Descriptor
		digest     string // of the image that is found
		called     string
		want       error
		text       string
	}{
		{what: "same tag", name: "", list: docker25, want: image.ErrAmbiguous, text: ambiguous},
		{what: "same tag", name: "latest", list: docker25, want: image.ErrAmbiguous, text: ambiguous},
		{what: "same tag", name: "one:latest", list: docker25, digest: one.Digest, called: "docker.io/library/one:latest"},
		{what: "same tag", name: "two", list: docker25, digest: two.Digest, called: "docker.io/library/two:latest"},
		{what: "same tag", name: "docker.io/library/two:latest", list: docker25, digest: two.Digest,
			called: "docker.io/library/two:latest"},
		{what: "same tag", name: "index.docker.io/library/two", list: docker25, digest: two.Digest,
			called: "docker.io/library/two:latest"},
		{what: "same tag", name: "three", list: docker25, want: image.ErrNotFound, text: ambiguous},
		{what: "same tag", name: two.Digest, list: docker25, digest: two.Digest, called: "docker.io/library/two:latest"},
		{what: "one image", name: "", list: docker25[:1], digest: one.Digest, called: "docker.io/library/one:latest"},
		{what: "one image", name: "latest", list: docker25[:1], digest: one.Digest, called: "docker.io/library/one:latest"},
		{what: "untagged too", name: "", list: []imagetest.Descriptor{one, tag(two, "v1")}, want: image.ErrAmbiguous,
			text: one.Digest + ", v1"},
		{what: "untagged too", name: "v1", list: []imagetest.Descriptor{one, tag(two, "v1")}, digest: two.Digest,
			called: "image:v1"},
		{what: "untagged too", name: one.Digest, list: []imagetest.Descriptor{one, tag(two, "v1")}, digest: one.Digest,
			called: "image:latest"},
		{what: "two tags of one image", name: "", list: []imagetest.Descriptor{tag(one, "a"), tag(one, "b")},
			digest: one.Digest, called: "image:a"},
		{what: "two tags of one image", name: "b", list: []imagetest.Descriptor{tag(one, "a"), tag(one, "b")},
			digest: one.Digest, called: "image:b"},
		{what: "one tag of two images", name: "v1", list: []imagetest.Descriptor{tag(one, "v1"), tag(two, "v1")},
			want: image.ErrAmbiguous, text: two.Digest},
		{what: "one tag of two images", name: "", list: []imagetest.Descriptor{tag(one, "v1"), tag(two, "v1")},
			want: image.ErrAmbiguous, text: two.Digest},
		{what: "one tag and platform of two images", name: "v1",
			list: []imagetest.Descriptor{on(tag(one, "v1"), "amd64"), on(tag(two, "v1"), "amd64")},
			want: image.ErrAmbiguous, text: two.Digest},
		{what: "one tag for two platforms", name: "v1",
			list: []imagetest.Descriptor{on(tag(arm, "v1"), "arm64"), on(tag(two, "v1"), "amd64")}, digest: two.Digest,
			called: "image:v1"},
		{what: "one tag for two platforms, said in the configuration", name: "v1",
			list: []imagetest.Descriptor{tag(arm, "v1"), tag(two, "v1")}, digest: two.Digest, called: "image:v1"},
		{what: "odd tags", name: "with space", list: []imagetest.Descriptor{tag(one, "with space"), tag(two, "_lead")},
			digest: one.Digest, called: "image:with space"},
		{what: "odd tags", name: "reg.example.org:5000/team/app:v1",
			list:   []imagetest.Descriptor{tag(one, "reg.example.org:5000/team/app:v1"), tag(two, "a/b")},
			digest: one.Digest, called: "reg.example.org:5000/team/app:v1"},
	} {
		t.Run(tt.what+" "+tt.name, func(t *testing.T) {
			dir := b.Layout(t, tt.list...)
			if tt.name != "" {
				dir += ":" + tt.name
			}
			img, err := open(t, "oci:"+dir, image.Options{Platform: amd64})
			if tt.want != nil {
				if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("error %v, want %v with %q", err, tt.want, tt.text)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if img.Digest != tt.digest || img.Name != tt.called {
				t.Errorf("got %s, called %q; want %s, %q", img.Digest, img.Name, tt.digest, tt.called)
			}
		})
	}
}

// TestArchiveNames: a docker archive in which one name stands for two images.
func TestArchiveNames(t *testing.T) {
	layer := layerTar(t, 1)
	config := configOf(t, layer)
	files := map[string][]byte{"a.json": config, "b.json": append([]byte(" "), config...), "l.tar": layer,
		"manifest.json": []byte(
			`[{"Config":"a.json","RepoTags":["app:v1"],"Layers":["l.tar"]},{"Config":"b.json","RepoTags":["app:v1"],"Layers":["l.tar"]}]`)}
	path := imagetest.Write(t, "x.tar", imagetest.FileTar(t, files))
	for _, name := range []string{"", ":app:v1"} {
		if _, err := open(t, path+name, image.Options{Platform: amd64}); !errors.Is(err, image.ErrAmbiguous) {
			t.Errorf("%q: error %v, want %v", name, err, image.ErrAmbiguous)
		}
	}
}

// TestSpecialFiles: nothing but a regular file is opened, wherever it stands; a FIFO would be waited at for ever.
func TestSpecialFiles(t *testing.T) {
	tarball := layerTar(t, 1)
	kinds := map[string]func(t *testing.T, path string){
		"a directory": func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
		},
		"a socket": func(t *testing.T, path string) {
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Skip(err)
			}
			t.Cleanup(func() { _ = l.Close() })
		},
	}
	specialKinds(kinds)
	for what, make := range kinds {
		for _, where := range []string{"index.json", "manifest", "config", "layer", "the file itself", "login"} {
			t.Run(what+" as "+where, func(t *testing.T) {
				leaktest.Check(t)
				b := imagetest.Blobs{}
				d := b.Image(t, nil, imagetest.Layer{Tar: tarball})
				base, err := os.MkdirTemp("", "s") // the name of a socket must be short
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = os.RemoveAll(base) })
				dir := filepath.Join(base, "i")
				if err := os.Rename(b.Layout(t, d), dir); err != nil {
					t.Fatal(err)
				}
				source := "oci:" + dir
				blob := func(digest string) string {
					// A socket's path is short: the blob becomes a link to it.
					path := filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:"))
					if err := errors.Join(os.Remove(path), os.Symlink("../../x", path)); err != nil {
						t.Fatal(err)
					}
					return filepath.Join(dir, "x")
				}
				path := ""
				switch where {
				case "index.json":
					path = filepath.Join(dir, "index.json")
					if err := os.Remove(path); err != nil {
						t.Fatal(err)
					}
				case "manifest":
					path = blob(d.Digest)
				case "config":
					for digest, content := range b {
						if bytes.Contains(content, []byte("diff_ids")) {
							path = blob(digest)
						}
					}
				case "layer":
					path = blob(imagetest.Digest(tarball))
				case "login":
					path = filepath.Join(dir, "auth.json")
					noCredentials(t)
					t.Setenv("REGISTRY_AUTH_FILE", path)
				default:
					path = filepath.Join(dir, "image.tar")
					source = "docker-archive:" + path
				}
				make(t, path)
				if where == "login" {
					if c, err := image.DefaultKeychain(t.Context(), "r.example/a"); err == nil || c != (image.Credentials{}) {
						t.Errorf("credentials %+v, %v", c, err)
					}
					return
				}
				img, err := open(t, source, image.Options{Platform: amd64})
				if err == nil {
					_, err = read(t.Context(), img)
				}
				said := where == "the file itself" || runtime.GOOS == "windows" // which says of a folder that it is not there
				if err == nil || !said && !strings.Contains(err.Error(), what) {
					t.Errorf("error %v, want one that says it is %s", err, what)
				}
			})
		}
	}
}

// TestOddLayers: blobs that other tools accept, and that hold what they should, are accepted.
func TestOddLayers(t *testing.T) {
	a := layerTar(t, 1)
	z := func(how string, b []byte) []byte { return imagetest.Compress(t, how, b) }
	skippable := func(b string) []byte { return append([]byte{0x50, 0x2a, 0x4d, 0x18, byte(len(b)), 0, 0, 0}, b...) }
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	half := len(a) / 2
	const foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	for _, tt := range []struct {
		name, mediaType string
		blob, tar       []byte
		want            error
	}{
		{name: "zeros after gzip", blob: join(z("gzip", a), make([]byte, 512)), tar: a},
		{name: "many zeros after gzip", blob: join(z("gzip", a), make([]byte, 1<<20)), tar: a},
		{name: "garbage after gzip", blob: join(z("gzip", a), []byte("garbage!")), tar: a, want: image.ErrCorrupt},
		{name: "garbage after zeros after gzip", blob: join(z("gzip", a), make([]byte, 512), []byte("x")), tar: a,
			want: image.ErrCorrupt},
		{name: "gzip members", blob: join(z("gzip", a[:half]), z("gzip", a[half:])), tar: a},
		{name: "gzip members and an empty one", blob: join(z("gzip", a[:half]), z("gzip", a[half:]), z("gzip", nil)), tar: a},
		{name: "cut gzip member", blob: join(z("gzip", a), z("gzip", a)[:5]), tar: a, want: image.ErrCorrupt},
		{name: "zstd with skippable frames at the end", mediaType: imagetest.OCILayer + "+zstd",
			blob: join(z("zstd", a), skippable("toc"), skippable("footer")), tar: a},
		{name: "zstd with a skippable frame first", mediaType: imagetest.OCILayer + "+zstd",
			blob: join(skippable("x"), z("zstd", a)), tar: a},
		{name: "zstd frames", mediaType: imagetest.OCILayer + "+zstd", blob: join(z("zstd", a[:half]), z("zstd", a[half:])),
			tar: a},
		{name: "garbage after zstd", mediaType: imagetest.OCILayer + "+zstd", blob: join(z("zstd", a), []byte("garbage!")),
			tar: a, want: image.ErrCorrupt},
		{name: "plain, said to be gzip", blob: a, tar: a},
		{name: "gzip, said to be plain", mediaType: imagetest.OCILayer, blob: z("gzip", a), tar: a},
		{name: "padded tar", blob: z("gzip", join(a, make([]byte, 100_000))), tar: join(a, make([]byte, 100_000))},
		{name: "no bytes", mediaType: imagetest.OCILayer, blob: []byte{}, tar: []byte{}},
		{name: "no bytes in gzip", blob: z("gzip", nil), tar: []byte{}},
		{name: "nondistributable", mediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar", blob: a, tar: a},
		{name: "nondistributable gzip", mediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
			blob: z("gzip", a), tar: a},
		{name: "nondistributable zstd", mediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
			blob: z("zstd", a), tar: a},
		{name: "docker foreign", mediaType: foreign, blob: z("gzip", a), tar: a},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leaktest.Check(t)
			if tt.mediaType == "" {
				tt.mediaType = imagetest.OCILayer + "+gzip"
			}
			b := imagetest.Blobs{}
			d := b.Image(t, nil, imagetest.Layer{Tar: tt.blob, DiffID: imagetest.Digest(tt.tar), MediaType: tt.mediaType})
			img, err := open(t, b.Layout(t, d), image.Options{Platform: amd64})
			var got [][]byte
			if err == nil {
				got, err = read(t.Context(), img)
			}
			if !errors.Is(err, tt.want) {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			if err == nil && !bytes.Equal(got[0], tt.tar) {
				t.Errorf("%d bytes, want %d", len(got[0]), len(tt.tar))
			}
		})
	}
}
