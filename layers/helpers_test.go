package layers

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// world is a machine in memory, the VM over it, and layer folders on disk.
type world struct {
	t      testing.TB
	f      *vmmtest.Fake
	vm     *uvm.UtilityVM
	state  string
	layers []Layer
}

func newWorld(t testing.TB, os vmm.OS, limits vmm.Limits, layers int) *world {
	t.Helper()
	w := &world{t: t, f: vmmtest.New("vm", os, limits), state: t.TempDir()}
	for i := range layers {
		w.layers = append(w.layers, Layer{Folder: w.folder("layer"+string(rune('a'+i)), layerVHD)})
	}
	w.open()
	return w
}

func (w *world) open() {
	w.t.Helper()
	vm, err := uvm.Open(w.t.Context(), w.state, func(context.Context) (vmm.Machine, error) { return w.f, w.f.Err() }, uvm.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.vm = vm
	w.t.Cleanup(func() { _ = vm.Close() })
}

// folder makes a folder with one file in it.
func (w *world) folder(name, file string) string {
	w.t.Helper()
	dir := filepath.Join(w.t.TempDir(), name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, file), make([]byte, 4096), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

func (w *world) scratch(name string) string { return w.folder(name, sandboxVHDX) }

func (w *world) request(id string, layers []Layer) Request {
	return Request{VM: w.vm, ID: id, Layers: layers, Scratch: w.scratch(id), Host: ids{}}
}

func (w *world) mustMount(r Request) *Mounted {
	w.t.Helper()
	m, err := Mount(w.t.Context(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

func (w *world) checkEmpty() {
	w.t.Helper()
	if left := w.f.Leftovers(); len(left) > 0 {
		w.t.Errorf("left in the machine: %q", left)
	}
	if s := w.vm.Status(); !s.Empty() {
		w.t.Errorf("left in the books: %+v", s)
	}
	if v := w.f.Violations(); len(v) > 0 {
		w.t.Errorf("rules of the world broken: %q", v)
	}
}

// ids is a Windows host that knows identities only.
type ids struct{ Host }

func (ids) LayerID(_ context.Context, folder string) (string, error) {
	return "id-of-" + filepath.Base(folder), nil
}
