package layers_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// folder creates a folder with one file in it, standing for a layer or a scratch.
func folder(parent, name, file string) string {
	dir := filepath.Join(parent, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, file), []byte("image"), 0o600); err != nil {
		log.Fatal(err)
	}
	return dir
}

// A container's root is mounted in a VM and taken away again. The machine of this example exists in
// memory only; strata.StartVM and strata.OpenVM give a real one.
func ExampleMount() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	machine := vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())
	vm, err := uvm.Open(ctx, "", func(context.Context) (vmm.Machine, error) { return machine, nil }, uvm.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()

	m, err := layers.Mount(ctx, layers.Request{
		VM: vm,
		ID: "web",
		Layers: []layers.Layer{ // top-most first
			{Folder: folder(dir, "app", "layer.vhd")},
			{Folder: folder(dir, "debian", "layer.vhd")},
		},
		Scratch: folder(dir, "scratch", "sandbox.vhdx"),
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("root:", m.Root)
	fmt.Println("in the VM:", len(machine.Leftovers()))

	// After a failure Release can be called again; it continues where it stopped.
	if err := m.Release(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println("in the VM:", len(machine.Leftovers()))
	// Output:
	// root: /run/gcs/c/web/rootfs
	// in the VM: 7
	// in the VM: 0
}

// The functions of hcsshim's package of the same name take one list: layers top-most first, the
// scratch last.
func ExampleMountContainerLayers() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	machine := vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())
	vm, err := uvm.Open(ctx, "", func(context.Context) (vmm.Machine, error) { return machine, nil }, uvm.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()

	layerFolders := []string{
		folder(dir, "app", "layer.vhd"), folder(dir, "debian", "layer.vhd"), folder(dir, "scratch", "sandbox.vhdx"),
	}
	root, err := layers.MountContainerLayers(ctx, layerFolders, "/run/gcs/c/web", vm)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(root)

	// The VM is about to go: its read-only layers go with it, only the scratch is given up.
	resources := layers.NewImageLayers(vm, "/run/gcs/c/web", layerFolders)
	if err := resources.Release(ctx, false); err != nil {
		log.Fatal(err)
	}
	for _, left := range machine.Leftovers()[:2] {
		fmt.Println(left)
	}
	// Output:
	// /run/gcs/c/web/rootfs
	// mount vpmem 0 at /run/layers/p0
	// mount vpmem 1 at /run/layers/p1
}
