package store_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/store"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// view is a way to see the layers of an image as one tree.
type view struct {
	name   string
	format store.Format
	list   func(t *testing.T, folders []string) map[string]string // top first
	// only puts into want, and takes out of want and got, where the view cannot show what umoci unpacks.
	// implied are the directories that some layer has something in but no entry for.
	only func(want, got map[string]string, implied map[string]bool) (map[string]string, map[string]string)
	slow bool
}

var hostViews = []view{
	{name: "overlay of EROFS", format: erofs, list: overlay(erofs, "erofs"), only: madeUp},
	{name: "overlay of ext4", format: vhd, list: overlay(vhd, "ext4"), only: madeUp},
	{name: "index", format: erofs, list: index, only: exactly},
}

// overlay is what overlayfs shows of the layers, mounted on this host.
func overlay(f store.Format, fstype string) func(*testing.T, []string) map[string]string {
	return func(t *testing.T, folders []string) map[string]string {
		t.Helper()
		var lower []string
		for _, dir := range folders {
			lower = append(lower, treetest.Mount(t, filepath.Join(dir, f.File.FileName()), fstype))
		}
		if len(lower) == 1 {
			lower = append(lower, t.TempDir()) // overlayfs wants two without an upper one
		}
		root := t.TempDir()
		treetest.Run(t, "mount", "-t", "overlay", "overlay", "-o", "ro,lowerdir="+strings.Join(lower, ":"), root)
		t.Cleanup(func() { treetest.Run(t, "umount", root) })
		return treetest.Describe(t, root)
	}
}

// madeUp: a layer that is converted by itself has to make up the attributes of an implied directory, and
// overlayfs shows those of the uppermost layer. Tools that build on overlayfs write entries for all
// parents, umoci does not.
func madeUp(want, got map[string]string, implied map[string]bool) (map[string]string, map[string]string) {
	want, got = treetest.WithoutTimes(want, implied), treetest.WithoutTimes(got, implied)
	if implied[private] {
		want[private] = "mode=40755 owner=0:0"
	}
	return want, got
}

// index is what the kernel of this host shows of the disk with an index over the layers.
func index(t *testing.T, folders []string) map[string]string {
	t.Helper()
	var files []string
	for _, dir := range folders {
		files = append(files, filepath.Join(dir, layerdir.EROFS.FileName()))
	}
	dir := t.TempDir()
	extents, err := layerdir.IndexDisk(filepath.Join(dir, "index"), files)
	if err != nil {
		t.Fatal(err)
	}
	disk, err := os.Create(filepath.Join(dir, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	for _, e := range extents {
		f, err := os.Open(e.Path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(disk, io.NewSectionReader(f, e.Offset, e.Length))
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	treetest.Run(t, "fsck.erofs", disk.Name())
	return treetest.Describe(t, treetest.Mount(t, disk.Name(), "erofs"))
}

func exactly(want, got map[string]string, _ map[string]bool) (map[string]string, map[string]string) {
	return want, got
}

// guestView is what a program in a real VM sees of the layers, mounted as an image's are by default.
func guestView(t *testing.T) view {
	t.Helper()
	_, err := exec.LookPath("qemu-system-x86_64")
	treetest.Need(t, err == nil, "QEMU", "apt-get install qemu-system-x86")
	dir := filepath.Join(t.TempDir(), "vm")
	t.Cleanup(func() {
		if err := strata.KillVM(context.Background(), dir); err != nil && !errors.Is(err, strata.ErrNoVM) {
			t.Errorf("ending the VM: %v", err)
		}
	})
	vm, err := strata.StartVM(t.Context(), strata.VMOptions{Dir: dir, Image: bootimagetest.Image(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Errorf("closing the VM: %v", err)
		}
	})
	lister, err := os.ReadFile(treetest.Lister(t))
	if err != nil {
		t.Fatal(err)
	}
	tools := filepath.Join(t.TempDir(), "tools")
	in := strings.NewReader(string(treetest.Tar(t, treetest.Entry{Name: "tree", Mode: 0o755, Body: string(lister)})))
	if _, err := layerdir.Convert(t.Context(), layerdir.Options{Format: layerdir.EROFS, Tar: in, Dir: tools}); err != nil {
		t.Fatal(err)
	}
	list := func(t *testing.T, folders []string) map[string]string {
		t.Helper()
		program := mountIn(t, vm, "tools", []string{tools})
		root := mountIn(t, vm, "image", folders)
		obs, err := vm.Machine().Observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if disk := fmt.Sprintf("index of %d layers", len(folders)); !slices.ContainsFunc(obs.Devices,
			func(d vmm.Device) bool {
				scsi, ok := d.(vmm.SCSIDisk)
				return ok && scsi.Path == disk
			}) {
			t.Errorf("the VM has %v, want a disk that is the %s", obs.Devices, disk)
		}
		return vmmtest.Tree(t, vm.Machine(), program.Root+"/tree", root.Root)
	}
	return view{name: "index in a VM", format: erofs, list: list, only: exactly, slow: true}
}

// mountIn mounts layers in a VM until the test ends.
func mountIn(t *testing.T, vm *uvm.UtilityVM, id string, folders []string) *layers.Mounted {
	t.Helper()
	r := layers.Request{VM: vm, ID: id}
	for _, dir := range folders {
		r.Layers = append(r.Layers, layers.Layer{Folder: dir})
	}
	m, err := layers.Mount(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Release(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return m
}
