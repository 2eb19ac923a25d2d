package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/store"
	"github.com/stratavm/strata/test/imagetest"
	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// TestHostInUserNamespace imports an image with all that layers can say, mounts it, and compares the root
// with what tar makes of the sum; writes to it, runs programs, and takes all away.
func TestHostInUserNamespace(t *testing.T) {
	for _, ids := range []int{65536, 1} {
		t.Run(fmt.Sprintf("%d ids", ids), func(t *testing.T) {
			if treetest.InUserNamespace(t, ids) {
				hostInUserNamespace(t, ids == 1)
			}
		})
	}
}

func hostInUserNamespace(t *testing.T, one bool) {
	type entry = treetest.Entry
	busybox, err := os.ReadFile(need(t, "busybox", "busybox-static"))
	if err != nil {
		t.Fatal(err)
	}
	note := map[string]string{"SCHILY.xattr.user.note": "n",
		"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00" + strings.Repeat("\x00", 12)}
	base := []entry{{Name: "./"}, {Name: "bin/"}, {Name: "bin/busybox", Mode: 0o755, Body: string(busybox)},
		{Name: "proc/"}, {Name: "sys/"}, {Name: "dev/"},
		{Name: "tmp/", Mode: 0o1777}, {Name: "srv/", UID: 33, GID: 33, Mode: 0o2750},
		{Name: "srv/owned", UID: 1000, GID: 50, Body: "o", Mode: 0o640},
		{Name: "noted", Body: "x", PAX: note}, {Name: "first", Body: "two names"}, {Name: "etc/"},
		{Name: "etc/second", Type: tar.TypeLink, Link: "first"}}
	stack := [][]entry{
		slices.Concat(base, []entry{{Name: "gone", Body: "x"}, {Name: "opaque/"}, {Name: "opaque/old", Body: "x"},
			{Name: "kind", Body: "file"}, {Name: "node", Body: "x"}}),
		{{Name: "./"}, {Name: ".wh.gone"}, {Name: "opaque/", Mode: 0o711}, {Name: "opaque/.wh..wh..opq"},
			{Name: "opaque/new", Body: "new"}, {Name: "kind/"}},
		{{Name: "./"}, {Name: ".wh.kind"}, {Name: "kind/"}, {Name: "kind/in", Body: "1"},
			{Name: "node", Type: tar.TypeChar, Major: 1, Minor: 3}},
	}
	sum := slices.Concat(base, []entry{{Name: "opaque/", Mode: 0o711}, {Name: "opaque/new", Body: "new"}, {Name: "kind/"},
		{Name: "kind/in", Body: "1"}})
	file, unpacked := filepath.Join(t.TempDir(), "sum.tar"), t.TempDir()
	if err := os.WriteFile(file, treetest.Tar(t, sum...), 0o644); err != nil {
		t.Fatal(err)
	}
	owner := "--same-owner"
	if one {
		owner = "--no-same-owner"
	}
	treetest.Run(t, "tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", owner, "-xpf", file, "-C", unpacked)
	want := treetest.Describe(t, unpacked)

	leaktest.Check(t)
	dir := t.TempDir()
	s, err := store.Open(t.Context(), filepath.Join(dir, "store"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	trees := store.Format{File: layerdir.Tree}
	r := store.Request{Name: "x", Digest: imagetest.Digest(nil), Source: "file:/none", Formats: []store.Format{trees}}
	for _, l := range stack {
		b := treetest.Tar(t, l...)
		r.Layers = append(r.Layers, store.Layer{DiffID: imagetest.Digest(b), Size: -1,
			Open: func(context.Context, func(int64)) (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(b)), nil
			}})
	}
	img, err := s.Import(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	folders, err := s.Folders(img, trees)
	if err != nil {
		t.Fatal(err)
	}
	var top []layers.Layer
	for _, f := range folders {
		top = append(top, layers.Layer{Folder: f})
	}
	open := func() *uvm.UtilityVM {
		vm, err := strata.OpenHost(t.Context(), filepath.Join(dir, "host"), strata.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return vm
	}
	vm := open()
	if l := vm.Limits(); l.EROFS || !l.LayerFolders {
		t.Errorf("the machine says %+v", l)
	}
	scratch := t.TempDir()
	m := mount(t, layers.Request{VM: vm, ID: "a", Layers: top, Scratch: scratch})
	root := strata.HostPath(vm, m.Root)
	got := treetest.Describe(t, root)
	delete(want, ".")
	delete(got, ".")
	if d := treetest.Diff(want, got); d != "" {
		t.Error(d)
	}
	out := sh(t, m, "cd /; busybox id -u; busybox cat opaque/new etc/second; busybox rm -r opaque first; busybox "+
		"mkdir opaque; echo mine >opaque/mine; busybox ls opaque; echo x >/dev/null; busybox ls -d /sys/class")
	if out != "0\nnewtwo namesmine\n/sys/class\n" {
		t.Errorf("a program says %q", out)
	}
	readOnly := mount(t, layers.Request{VM: vm, ID: "b", Layers: top})
	if got := treetest.Describe(t, strata.HostPath(vm, readOnly.Root)); got["opaque/new"] != want["opaque/new"] {
		t.Errorf("another container sees %q", got["opaque/new"])
	}
	if out, err := runAs(t, m, "1000:50", "/bin/busybox", "id", "-u"); one != (err != nil) || err == nil &&
		out != "1000\n" {
		t.Errorf("as another user: %q, %v", out, err)
	}
	if _, err := runAs(t, m, "70000", "/bin/busybox", "true"); err == nil ||
		!strings.Contains(err.Error(), "user namespace") {
		t.Errorf("as a user that there is not: %v", err)
	}
	if err := errors.Join(m.EndPrograms(t.Context()), vm.Close()); err != nil {
		t.Fatal(err)
	}
	vm = open()
	for _, id := range []string{"a", "b"} { // found again by what may be another process
		if m, err = layers.Open(vm, id); err != nil {
			t.Fatal(err)
		}
		release(t, m)
	}
	empty(t, vm)
	if err := vm.Close(); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(scratch, "scratch/a/upper/opaque/mine")); err != nil || string(b) != "mine\n" {
		t.Errorf("on the scratch: %q, %v", b, err)
	}
	if report, err := s.Check(t.Context()); err != nil || len(report.Problems) > 0 {
		t.Errorf("the layers have changed: %+v, %v", report.Problems, err)
	}
}

func runAs(t *testing.T, m *layers.Mounted, user string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	_, err := m.Run(t.Context(), vmm.ProcessSpec{Args: args, User: user, Stdout: &out})
	return out.String(), err
}

// TestNoDisksInUserNamespace: what the kernel mounts for nobody there is refused with the remedy.
func TestNoDisksInUserNamespace(t *testing.T) {
	if !treetest.InUserNamespace(t, 65536) {
		return
	}
	leaktest.Check(t)
	top, _ := stack(t, 1)
	vm, err := strata.OpenHost(t.Context(), filepath.Join(t.TempDir(), "host"), strata.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	if _, err := layers.Mount(t.Context(), layers.Request{VM: vm, ID: "a", Layers: top}); err == nil ||
		!strings.Contains(err.Error(), "format dir") {
		t.Errorf("a layer that is a disk: %v", err)
	}
	trees, _ := stackAs(t, 2, layerdir.Options{Format: layerdir.Tree})
	if err := os.WriteFile(filepath.Join(trees[0].Folder, "layer.dir.ids"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := layers.Mount(t.Context(), layers.Request{VM: vm, ID: "a", Layers: trees}); !errors.Is(err,
		layerdir.ErrOtherIDs) {
		t.Errorf("a tree of a namespace with other ids: %v", err)
	}
	empty(t, vm)
}
