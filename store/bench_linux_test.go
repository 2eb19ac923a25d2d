package store_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

// shape is of what an image of a Debian root is made.
type shape struct {
	how    string // of compression
	layers int
	copies int // of the root in each layer
}

// importCases are images, and how many processors may work on them.
var importCases = []struct {
	name string
	shape
	procs int    // 0: all
	than  string // an earlier case to compare with
}{
	{name: "gzip", shape: shape{"gzip", 1, 1}},
	{name: "zstd", shape: shape{"zstd", 1, 1}},
	{name: "double", shape: shape{"gzip", 1, 2}, than: "gzip"},
	{name: "4-layers-1-proc", shape: shape{"gzip", 4, 1}, procs: 1},
	{name: "4-layers", shape: shape{"gzip", 4, 1}, than: "4-layers-1-proc"},
}

// packedImage is an image as the contenders want it.
type packedImage struct {
	how    string
	layout string   // OCI, with the tag v1
	blobs  []string // its compressed layers, base first
	tars   []string // the same as tars
	tree   string   // all of them unpacked
}

// contenders do to an image what they can: the import first, then those that it is compared with. Each
// gives the command that leaves its results in the folder out; procs is how many processors to use.
var contenders = []struct {
	name    string
	job     string // of the test program itself; empty: another program
	only    string // the only compression that it can read everywhere
	command func(img packedImage, out string, procs int) []string
}{
	{name: "strata", job: "import", command: func(img packedImage, out string, _ int) []string {
		return []string{os.Args[0], "-test.run=^TestBenchChild$", out, "oci:" + img.layout + ":v1"}
	}},
	{name: "decompression", command: func(img packedImage, _ string, procs int) []string {
		return append([]string{"sh", "-c", `printf '%s\0' "$@" | xargs -0 -n 1 -P ` + fmt.Sprint(procs) + ` sh -c '` +
			img.how + ` -d -c < "$0" > /dev/null'`, "sh"}, img.blobs...)
	}},
	{name: "sha256sum", command: func(img packedImage, _ string, procs int) []string {
		return append([]string{"sh", "-c", `printf '%s\0' "$@" | xargs -0 -n 1 -P ` + fmt.Sprint(procs) + ` sha256sum`, "sh"},
			img.tars...)
	}},
	{name: "tar", command: func(img packedImage, out string, _ int) []string {
		return append([]string{"sh", "-e", "-c", `out=$1; shift; for f; do ` + img.how +
			` -d -c < "$f" | tar -x -p -C "$out"; done; sync -f "$out"`, "sh", out}, img.blobs...)
	}},
	{name: "umoci", only: "gzip", command: func(img packedImage, out string, _ int) []string {
		return []string{"umoci", "unpack", "--image", img.layout + ":v1", filepath.Join(out, "bundle")}
	}},
	{name: "tar2ext4", job: "tar2ext4", command: func(img packedImage, out string, _ int) []string {
		return append([]string{os.Args[0], "-test.run=^TestBenchChild$", out}, img.tars...)
	}},
	{name: "mkfs.erofs", command: func(img packedImage, out string, _ int) []string {
		return []string{"mkfs.erofs", "--quiet", filepath.Join(out, "layer.erofs"), img.tree}
	}},
}

// BenchmarkImportImage imports images and has other programs work on the same, each as a process of its
// own: decompression alone; sha256sum, of tars that are decompressed already; tar and umoci, which unpack;
// tar2ext4, which converts such tars one after the other; mkfs.erofs, which starts from a tree that is unpacked.
// Only the import and tar wait for the disk. Of several rounds the fastest counts. A ratio is to the
// import in the same case, or, with the name of another case, to the same program there.
func BenchmarkImportImage(b *testing.B) {
	images, spent := map[shape]packedImage{}, map[string]usage{}
	dir := b.TempDir()
	for _, c := range importCases {
		if c.procs == 0 {
			c.procs = runtime.NumCPU()
		}
		b.Run(c.name, func(b *testing.B) {
			img, ok := images[c.shape]
			if !ok {
				img = pack(b, filepath.Join(dir, fmt.Sprint(len(images))), c.shape)
				images[c.shape] = img
			}
			for _, p := range contenders {
				if p.only != "" && p.only != c.how {
					continue
				}
				b.Run(p.name, func(b *testing.B) {
					var fastest usage
					for b.Loop() {
						out := b.TempDir()
						u := measured(b, []string{benchJob + "=" + p.job, fmt.Sprintf("GOMAXPROCS=%d", c.procs)},
							p.command(img, out, c.procs)...)
						if err := os.RemoveAll(out); err != nil {
							b.Fatal(err)
						}
						if fastest.seconds == 0 || u.seconds < fastest.seconds {
							fastest = u
						}
					}
					spent[c.name+p.name] = fastest
					fastest.report(b, spent[c.name+contenders[0].name], spent[c.than+p.name], c.than)
				})
			}
		})
	}
}

// report reports what was used, and as ratios to what the import and an earlier case used. These are
// zero where a filter of benchmarks left them out.
func (u usage) report(b *testing.B, ours, before usage, than string) {
	b.ReportMetric(0, "ns/op") // making room is part of it
	for _, m := range []struct {
		unit, name         string
		used, ours, before float64
	}{
		{"s", "time", u.seconds, ours.seconds, before.seconds},
		{"MiB-peak", "peak", u.peak, ours.peak, before.peak},
		{"MiB-written", "written", u.written, ours.written, before.written},
	} {
		if m.used == 0 {
			continue // it writes nothing
		}
		b.ReportMetric(m.used, m.unit)
		if m.ours > 0 {
			b.ReportMetric(m.used/m.ours, "×"+m.name)
		}
		if m.before > 0 {
			b.ReportMetric(m.used/m.before, "×"+than+"-"+m.name)
		}
	}
}

// pack creates an image in a folder. The copies of the root lie in folders of different names, so that no
// two layers are the same.
func pack(b *testing.B, dir string, s shape) packedImage {
	b.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	img := packedImage{how: s.how, layout: filepath.Join(dir, "gzip"), tree: filepath.Join(dir, "tree")}
	treetest.Run(b, "umoci", "init", "--layout", img.layout)
	treetest.Run(b, "umoci", "new", "--image", img.layout+":v1")
	if err := os.Mkdir(img.tree, 0o755); err != nil {
		b.Fatal(err)
	}
	for i := range s.layers {
		path := filepath.Join(dir, fmt.Sprintf("%d.tar", i))
		if err := copyRoot(path, debianTar(b), i*s.copies, s.copies); err != nil {
			b.Fatal(err)
		}
		img.tars = append(img.tars, path)
		treetest.Untar(b, path, img.tree)
		treetest.Run(b, "umoci", "raw", "add-layer", "--image", img.layout+":v1", path)
	}
	if s.how != "gzip" {
		other := filepath.Join(dir, s.how)
		treetest.Run(b, "skopeo", "--insecure-policy", "copy", "-q", "--dest-compress-format", s.how, "oci:"+img.layout+":v1",
			"oci:"+other+":v1")
		img.layout = other
	}
	for _, l := range openImage(b, "oci:"+img.layout+":v1").Layers {
		img.blobs = append(img.blobs, filepath.Join(img.layout, "blobs", strings.Replace(l.Digest, ":", "/", 1)))
	}
	return img
}

// copyRoot writes a tar with n copies of another in folders that are numbered from first.
func copyRoot(path, root string, first, n int) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	for i := range n {
		in, err := os.Open(root)
		if err != nil {
			return err
		}
		err = prefixed(w, in, fmt.Sprintf("copy%d/", first+i))
		if err := errors.Join(err, in.Close()); err != nil {
			return err
		}
	}
	return w.Close()
}

// prefixed copies the entries of a tar into a folder of another.
func prefixed(w *tar.Writer, in io.Reader, folder string) error {
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		h.Name = folder + h.Name
		if h.Typeflag == tar.TypeLink {
			h.Linkname = folder + h.Linkname
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(w, r); err != nil {
			return err
		}
	}
}
