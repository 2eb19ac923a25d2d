package strata_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/store"
	"github.com/stratavm/strata/vmm"
)

// What the examples work with, made by makeExamples. Their VMs exist in memory only, so that they run
// everywhere: leave Driver empty for a real one.
var (
	work, app, debian, data, rootfs                     string
	options, imageOptions, otherOptions, programOptions strata.VMOptions
)

func makeExamples() {
	var err error
	if work, err = os.MkdirTemp("", "example"); err != nil {
		log.Fatal(err)
	}
	folder := func(name, file string) string {
		dir := filepath.Join(work, name)
		err := os.MkdirAll(dir, 0o700)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, file), []byte("image"), 0o600)
		}
		if err != nil {
			log.Fatal(err)
		}
		return dir
	}
	app, debian, data = folder("app", "layer.vhd"), folder("debian", "layer.vhd"), folder("scratch", "sandbox.vhdx")
	rootfs = filepath.Join(work, "rootfs.tar")
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err = w.WriteHeader(&tar.Header{Name: "bin/", Mode: 0o755, Typeflag: tar.TypeDir})
	if err := errors.Join(err, w.Close(), os.WriteFile(rootfs, b.Bytes(), 0o600)); err != nil {
		log.Fatal(err)
	}
	for name, o := range map[string]*strata.VMOptions{"web": &options, "image": &imageOptions, "other": &otherOptions,
		"program": &programOptions} {
		*o = strata.VMOptions{Dir: filepath.Join(work, "vms", name), Driver: "fake"}
	}
}

func Example() {
	ctx := context.Background()
	// options := strata.VMOptions{Dir: "/var/lib/strata/vms/web"}
	vm, err := strata.StartVM(ctx, options)
	if err != nil {
		log.Fatal(err)
	}
	m, err := layers.Mount(ctx, layers.Request{
		VM:      vm,
		ID:      "web",
		Layers:  []layers.Layer{{Folder: app}, {Folder: debian}}, // top-most first
		Scratch: data,
	})
	if err != nil {
		log.Fatal(err)
	}
	code, err := m.Run(ctx, vmm.ProcessSpec{Args: []string{"id"}, Stdout: os.Stdout})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("exit code", code, "in", m.Root)
	// Everything goes again. After a failure call it once more: it continues.
	if err := m.Release(ctx); err != nil {
		log.Fatal(err)
	}
	if err := vm.Shutdown(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: exit code 0 in /run/gcs/c/web/rootfs
}

// An image becomes layer folders in a store, and these a root in a VM.
func ExampleStartVM() {
	ctx := context.Background()
	src, err := image.ParseSource("tar:" + rootfs) // or "docker://debian:12", "oci:/images/web:v1"
	if err != nil {
		log.Fatal(err)
	}
	img, err := image.Open(ctx, src, image.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer img.Close()
	st, err := store.Open(ctx, filepath.Join(work, "store"), store.Options{})
	if err != nil {
		log.Fatal(err)
	}
	erofs := store.Format{File: layerdir.EROFS}
	record, err := img.Import(ctx, st, image.ImportOptions{Name: "base", Formats: []store.Format{erofs}})
	if err != nil {
		log.Fatal(err)
	}
	folders, err := st.Folders(record, erofs)
	if err != nil {
		log.Fatal(err)
	}

	vm, err := strata.StartVM(ctx, imageOptions)
	if err != nil {
		log.Fatal(err)
	}
	request := layers.Request{VM: vm, ID: "base"} // without a scratch: read-only
	for _, f := range folders {
		request.Layers = append(request.Layers, layers.Layer{Folder: f})
	}
	m, err := layers.Mount(ctx, request)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(folders), "layer at", m.Root)
	if err := vm.Shutdown(ctx); err != nil { // what is mounted goes with it
		log.Fatal(err)
	}
	// Output: 1 layer at /run/gcs/c/base/rootfs
}

// A VM outlives the process that started it. Opening one recovers what a process left that died half way; a
// container is found by its id.
func ExampleOpenVM() {
	ctx := context.Background()
	first, err := strata.StartVM(ctx, otherOptions)
	if err != nil {
		log.Fatal(err)
	}
	request := layers.Request{VM: first, ID: "web", Layers: []layers.Layer{{Folder: debian}}}
	if _, err := layers.Mount(ctx, request); err != nil {
		log.Fatal(err)
	}
	if err := first.Close(); err != nil { // the VM runs on
		log.Fatal(err)
	}

	vm, err := strata.OpenVM(ctx, otherOptions.Dir, strata.OpenOptions{})
	switch {
	case errors.Is(err, strata.ErrNoVM), errors.Is(err, vmm.ErrGone):
		log.Fatal("start it: ", err)
	case err != nil:
		log.Fatal(err)
	}
	if err := vm.Recover(ctx); err != nil { // of releases that failed when it was opened
		log.Fatal(err)
	}
	for _, c := range vm.Claims() {
		m, err := layers.Open(vm, c.ID())
		if err == nil {
			err = m.Release(ctx)
		}
		fmt.Println(c.ID(), err)
	}
	if err := vm.Shutdown(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: web <nil>
}

// Programs are run beside a process that mounts: no lock is taken.
func ExampleOpenRunner() {
	ctx := context.Background()
	vm, err := strata.StartVM(ctx, programOptions)
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Shutdown(ctx)

	r, err := strata.OpenRunner(ctx, programOptions.Dir, strata.OpenOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	p, err := r.Exec(ctx, vmm.ProcessSpec{Args: []string{"uname", "-r"}, Stdout: os.Stdout})
	switch {
	case errors.Is(err, vmm.ErrProgramNotFound), errors.Is(err, vmm.ErrNotExecutable):
		log.Fatal("another program: ", err)
	case err != nil:
		log.Fatal(err)
	}
	defer p.Close()
	code, err := p.Wait(ctx)
	fmt.Println(code, err)
	// Output: 0 <nil>
}

// A dry run reports what a call would do to a VM, here to one that is not there yet.
func ExampleDryRun() {
	ctx := context.Background()
	report := func(c vmm.Change) error {
		if c.Mount != nil {
			fmt.Println(c.Op, "what the guest sees:", c.Mount)
		}
		return nil
	}
	vm, err := strata.DryRun(ctx, filepath.Join(work, "vms", "none"), report, strata.OpenOptions{})
	if err != nil {
		log.Fatal(err)
	}
	request := layers.Request{VM: vm, ID: "web", Layers: []layers.Layer{{Folder: debian}}, Scratch: data}
	if _, err := layers.Mount(ctx, request); err != nil {
		log.Fatal(err)
	}
	// Output:
	// add what the guest sees: mount scsi 0:0 at /run/mounts/m1
	// add what the guest sees: mount scsi 0:1 at /run/gcs/c/web
	// add what the guest sees: combine 1 layers at /run/gcs/c/web/rootfs
}
