package qemu

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/erofs"
	"github.com/stratavm/strata/internal/format/gpt"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// TestFormats: the guest's kernel, which may be older than the host's, shows of a layer in both formats,
// by itself, as a partition, below an index and below an overlay, what tar unpacks on the host.
func TestFormats(t *testing.T) {
	treetest.NeedRoot(t, "to unpack files of others")
	m := realVM(t, image(t))
	dir := t.TempDir()
	body, err := os.ReadFile(treetest.Lister(t))
	if err != nil {
		t.Fatal(err)
	}
	base := treetest.Everything(t)
	upper := treetest.Tar(t, treetest.Entry{Name: "./"}, treetest.Entry{Name: "tree", Mode: 0o755, Body: string(body)},
		treetest.Entry{Name: "etc/"},
		treetest.Entry{Name: "etc/.wh.passwd"}, treetest.Entry{Name: "etc/new", Body: "n"}, treetest.Entry{Name: "many/"},
		treetest.Entry{Name: "many/.wh..wh..opq"},
		treetest.Entry{Name: "hard3", Type: tar.TypeLink, Link: "etc/new"})
	convert := func(b []byte, format layerdir.Format, name string) (string, int64) {
		res, err := layerdir.Convert(t.Context(),
			layerdir.Options{Format: format, Tar: bytes.NewReader(b), Dir: filepath.Join(dir, name)})
		if err != nil {
			t.Fatal(err)
		}
		return res.Path, res.Bytes
	}
	// What tar unpacks on the host. It knows nothing of whiteouts.
	root := t.TempDir()
	unpack := func(b []byte, name string, args ...string) {
		file := filepath.Join(dir, name+".tar")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		treetest.Untar(t, file, root, args...)
	}
	implied := treetest.Implied(t, bytes.NewReader(base))
	unpack(base, "base")
	wantBase := treetest.WithoutTimes(treetest.Describe(t, root), implied)
	if err := errors.Join(os.Remove(filepath.Join(root, "etc/passwd")),
		os.RemoveAll(filepath.Join(root, "many"))); err != nil {
		t.Fatal(err)
	}
	unpack(upper, "upper", "--exclude=.wh.*")
	want := treetest.WithoutTimes(treetest.Describe(t, root), implied)

	var files []layerFile
	for _, l := range []struct {
		b      []byte
		format layerdir.Format
		name   string
	}{{upper, layerdir.EROFS, "upper"}, {base, layerdir.EROFS, "base"}, {base, layerdir.VHD, "base"}} {
		path, size := convert(l.b, l.format, l.name)
		if l.format == layerdir.VHD {
			size -= 512 // the footer is no part of a partition
		}
		files = append(files, layerFile{path, size})
	}

	lun := uint8(0)
	disk := func(d vmm.SCSIDisk, partitions ...uint64) []vmm.Change {
		lun++
		d.LUN, d.ReadOnly = lun, true
		if len(partitions) == 0 {
			return []vmm.Change{{Op: vmm.Add, Device: d,
				Mount: vmm.MappedDisk{LUN: lun, ReadOnly: true, MountPath: fmt.Sprintf("/run/f/%d", lun)}}}
		}
		out := []vmm.Change{{Op: vmm.Add, Device: d}}
		for _, p := range partitions {
			out = append(out, vmm.Change{Op: vmm.Add,
				Mount: vmm.MappedDisk{LUN: lun, Partition: p, ReadOnly: true, MountPath: fmt.Sprintf("/run/f/%dp%d", lun, p)}})
		}
		return out
	}
	// 1: the program and the upper layer
	changes := disk(vmm.SCSIDisk{Path: files[0].path})
	// 2
	changes = append(changes, disk(vmm.SCSIDisk{Path: files[1].path})...)
	// 3
	changes = append(changes, disk(vmm.SCSIDisk{Path: files[2].path})...)
	// 4
	changes = append(changes, disk(partitions(t, dir, files[1:]), 1, 2)...)
	// 5
	changes = append(changes, disk(indexDisk(t, dir, files[:2]))...)
	// the same, as an overlay
	changes = append(changes, vmm.Change{Op: vmm.Add, Mount: vmm.CombinedLayers{ContainerID: "c", RootPath: "/run/f/root",
		Layers: []vmm.GuestLayer{{Path: "/run/f/1"}, {Path: "/run/f/3"}}}})
	for _, c := range changes {
		if err := m.Apply(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	list := func(path string) map[string]string {
		t.Helper()
		got := vmmtest.Tree(t, m, "/run/f/1/tree", path)
		delete(got, "lost+found")
		return treetest.WithoutTimes(got, implied)
	}
	for path, got := range map[string]map[string]string{"/run/f/2": treetest.Unmarked(list("/run/f/2")),
		"/run/f/3":   list("/run/f/3"),
		"/run/f/4p1": treetest.Unmarked(list("/run/f/4p1")), "/run/f/4p2": list("/run/f/4p2")} {
		if d := treetest.Diff(wantBase, got); d != "" {
			t.Errorf("%s differs from what tar unpacks:\n%s", path, d)
		}
	}
	if d := treetest.Diff(want, list("/run/f/5")); d != "" {
		t.Errorf("the index differs from what tar unpacks:\n%s", d)
	}
	// Overlayfs counts hidden names of a file too: that of etc/passwd.
	const hard = "deep/a/b/c/hard"
	want[hard] = strings.Replace(want[hard], " links=1 ", " links=2 ", 1)
	if d := treetest.Diff(want, list("/run/f/root")); d != "" {
		t.Errorf("the overlay differs from what tar unpacks:\n%s", d)
	}
	for i := len(changes) - 1; i >= 0; i-- {
		if err := m.Apply(t.Context(), changes[i].Inverse()); err != nil {
			t.Error(err)
		}
	}
}

type layerFile struct {
	path string
	size int64 // without a VHD footer
}

// partitions is a disk with a partition for each file.
func partitions(t *testing.T, dir string, layers []layerFile) vmm.SCSIDisk {
	t.Helper()
	var names []string
	var sizes []int64
	for _, l := range layers {
		names, sizes = append(names, filepath.Base(l.path)), append(sizes, l.size)
	}
	plan, err := gpt.Plan(names, sizes)
	if err != nil {
		t.Fatal(err)
	}
	head, tail := filepath.Join(dir, "head"), filepath.Join(dir, "tail")
	for path, b := range map[string][]byte{head: plan.Head, tail: plan.Tail} {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	extents := []vmm.Extent{{Path: head, Length: int64(len(plan.Head))}}
	for i, p := range plan.Partitions {
		extents = append(extents, vmm.Extent{Path: layers[i].path, Length: sizes[i]})
		if rest := p.Size - sizes[i]; rest > 0 {
			extents = append(extents, vmm.Extent{Length: rest})
		}
	}
	return vmm.SCSIDisk{Path: "partitions",
		Extents: append(extents, vmm.Extent{Path: tail, Length: int64(len(plan.Tail))})}
}

// indexDisk is a disk with an index over layers, top first, and these behind it.
func indexDisk(t *testing.T, dir string, layers []layerFile) vmm.SCSIDisk {
	t.Helper()
	index, err := os.Create(filepath.Join(dir, "index"))
	if err != nil {
		t.Fatal(err)
	}
	defer index.Close()
	var in []erofs.IndexLayer
	for _, l := range layers {
		f, err := os.Open(l.path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		in = append(in, erofs.IndexLayer{Image: f, Bytes: l.size})
	}
	pieces, err := erofs.Index(index, in)
	if err != nil {
		t.Fatal(err)
	}
	d := vmm.SCSIDisk{Path: "index"}
	for _, p := range pieces {
		path := index.Name()
		if p.Layer >= 0 {
			path = layers[p.Layer].path
		}
		d.Extents = append(d.Extents, vmm.Extent{Path: path, Offset: p.Offset, Length: p.Length})
	}
	return d
}
