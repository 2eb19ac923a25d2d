package hostmount_test

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/erofs"
	"github.com/stratavm/strata/internal/format/gpt"
	"github.com/stratavm/strata/internal/format/layertree"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/hostmount"
)

const benchFiles = 10_000

// benchLayers creates n layers with benchFiles files together, in directories that all of them share.
func benchLayers(b *testing.B, n int) []string {
	b.Helper()
	dir := b.TempDir()
	images := make([]string, n)
	for i := range n {
		var entries []treetest.Entry
		for k := range benchFiles / n {
			entries = append(entries, treetest.Entry{Name: fmt.Sprintf("usr/d%d/e%d/file-%d-%d", k%10, k/10%10, i, k),
				Body: strings.Repeat("x", 100+k%8000)})
		}
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%d.erofs", i)))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := erofs.WriteLayer(b.Context(), f, bytes.NewReader(treetest.Tar(b, entries...)),
			layertree.Options{}); err != nil {
			b.Fatal(err)
		}
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
		images[n-1-i] = f.Name() // top first
	}
	return images
}

// way is a way to show layers as one tree. up is timed; what it returns takes everything away again.
type way struct {
	name    string
	prepare func(b *testing.B, images []string) any
	up      func(b *testing.B, images []string, prepared any, root string) (down func())
}

var ways = []way{
	{"disk per layer", nil, func(b *testing.B, images []string, _ any, root string) func() {
		return overlay(b, root, len(images), func(i int, dir string) {
			must(b, hostmount.MountImage(b.Context(), hostmount.Image{Path: images[i], ReadOnly: true}, dir))
		})
	}},
	{"one disk, partitions", partitioned, func(b *testing.B, images []string, prepared any, root string) func() {
		// The table is made for each mount. A loop device stands for each partition: not every kernel of
		// a host looks for partitions, those of guests do.
		names, sizes := partitions(b, images)
		l, err := gpt.Plan(names, sizes)
		must(b, err)
		return overlay(b, root, len(images), func(i int, dir string) {
			p := l.Partitions[i]
			must(b, hostmount.MountImage(b.Context(),
				hostmount.Image{Path: prepared.(string), Offset: p.Offset, Size: p.Size, ReadOnly: true}, dir))
		})
	}},
	{"one disk, merged index", concatenated, func(b *testing.B, images []string, prepared any, root string) func() {
		index(b, images, filepath.Join(b.TempDir(), "index"))
		must(b, hostmount.MountImage(b.Context(), hostmount.Image{Path: prepared.(string), ReadOnly: true}, root))
		return func() { must(b, hostmount.Unmount(b.Context(), root)) }
	}},
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// overlay mounts n layers below root's sibling and stacks them at root.
func overlay(b *testing.B, root string, n int, mount func(i int, dir string)) func() {
	var o hostmount.Overlay
	for i := range n {
		dir := filepath.Join(filepath.Dir(root), fmt.Sprintf("l%d", i))
		must(b, os.MkdirAll(dir, 0o755))
		mount(i, dir)
		o.Lowers = append(o.Lowers, dir)
	}
	must(b, hostmount.MountOverlay(b.Context(), o, root))
	return func() {
		for _, dir := range append([]string{root}, o.Lowers...) {
			must(b, hostmount.Unmount(b.Context(), dir))
		}
	}
}

func partitions(b *testing.B, images []string) (names []string, sizes []int64) {
	for i, img := range images {
		st, err := os.Stat(img)
		must(b, err)
		names, sizes = append(names, fmt.Sprintf("layer %d", i)), append(sizes, st.Size())
	}
	return names, sizes
}

// partitioned puts the disk together that a VM would see, without timing it: a VM reads the layers
// where they are.
func partitioned(b *testing.B, images []string) any {
	names, sizes := partitions(b, images)
	l, err := gpt.Plan(names, sizes)
	must(b, err)
	out, err := os.Create(filepath.Join(b.TempDir(), "gpt"))
	must(b, err)
	_, err = out.Write(l.Head)
	must(b, err)
	for i, p := range l.Partitions {
		data, err := os.ReadFile(images[i])
		must(b, err)
		_, err = out.WriteAt(data, p.Offset)
		must(b, err)
	}
	_, err = out.WriteAt(l.Tail, l.TailOffset)
	must(b, err)
	must(b, out.Close())
	return out.Name()
}

func index(b *testing.B, images []string, path string) []erofs.Piece {
	w, err := os.Create(path)
	must(b, err)
	defer w.Close()
	layers := make([]erofs.IndexLayer, len(images))
	for i, img := range images {
		f, err := os.Open(img)
		must(b, err)
		defer f.Close()
		st, err := f.Stat()
		must(b, err)
		layers[i] = erofs.IndexLayer{Image: f, Bytes: st.Size()}
	}
	pieces, err := erofs.Index(w, layers)
	must(b, err)
	return pieces
}

func concatenated(b *testing.B, images []string) any {
	dir := b.TempDir()
	blob := filepath.Join(dir, "index")
	pieces := index(b, images, blob)
	out, err := os.Create(filepath.Join(dir, "disk"))
	must(b, err)
	for _, p := range pieces {
		name := blob
		if p.Layer >= 0 {
			name = images[p.Layer]
		}
		f, err := os.Open(name)
		must(b, err)
		_, err = io.Copy(out, io.NewSectionReader(f, p.Offset, p.Length))
		must(b, err)
		must(b, f.Close())
	}
	must(b, out.Close())
	return out.Name()
}

// BenchmarkMount: 10,000 files in 1 to 100 layers, made visible as one tree.
func BenchmarkMount(b *testing.B) { benchmark(b, false) }

// BenchmarkRead: the tree of BenchmarkMount is walked and every file is read, after a fresh mount.
func BenchmarkRead(b *testing.B) { benchmark(b, true) }

func benchmark(b *testing.B, read bool) {
	treetest.Need(b, os.Geteuid() == 0, "root, to mount", "run as root")
	for _, n := range []int{1, 10, 30, 100} {
		images := benchLayers(b, n)
		for _, w := range ways {
			b.Run(fmt.Sprintf("%d layers/%s", n, w.name), func(b *testing.B) {
				var prepared any
				if w.prepare != nil {
					prepared = w.prepare(b, images)
				}
				root := filepath.Join(b.TempDir(), "root")
				must(b, os.Mkdir(root, 0o755))
				for b.Loop() {
					if read {
						b.StopTimer()
					}
					down := w.up(b, images, prepared, root)
					if read {
						b.StartTimer()
						if got := readAll(b, root); got != benchFiles/n*n {
							b.Fatalf("%d files", got)
						}
					}
					b.StopTimer()
					down()
					b.StartTimer()
				}
			})
		}
	}
}

func readAll(b *testing.B, root string) (files int) {
	buf := make([]byte, 64<<10)
	must(b, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		for {
			if _, err := f.Read(buf); err == io.EOF {
				files++
				return nil
			} else if err != nil {
				return err
			}
		}
	}))
	return files
}
