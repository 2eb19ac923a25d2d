package strata

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// TestStopLeavesLayers: a VM that ends unmounts what is written to, and leaves the layers to the guest's end, however
// many there are. A dry run says the same.
func TestStopLeavesLayers(t *testing.T) {
	for _, n := range []int{1, 10} {
		ctx, dir := t.Context(), filepath.Join(t.TempDir(), "vm")
		vm, err := StartVM(ctx, VMOptions{Dir: dir, Driver: "fake"})
		if err != nil {
			t.Fatal(err)
		}
		folder := func(name, file string) string {
			t.Helper()
			path := filepath.Join(t.TempDir(), name)
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(path, file), make([]byte, 1024), 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
		r := layers.Request{VM: vm, ID: "web", Attach: layers.AttachSeparate}
		r.Scratch = folder("scratch", "sandbox.vhdx")
		for i := range n {
			r.Layers = append(r.Layers, layers.Layer{Folder: folder(fmt.Sprint("layer", i), "layer.vhd")})
		}
		if _, err := layers.Mount(ctx, r); err != nil {
			t.Fatal(err)
		}
		var told []vmm.Change
		dry, err := DryRun(ctx, dir, func(c vmm.Change) error {
			told = append(told, c)
			return nil
		}, OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := UnmountForStop(ctx, dry, dir); err != nil {
			t.Fatal(err)
		}
		if err := dry.Close(); err != nil {
			t.Fatal(err)
		}
		m := vm.Machine().(*vmmtest.Fake)
		before := len(m.Log())
		if err := StopVM(ctx, vm, dir, func(message string) { t.Error(message) }); err != nil {
			t.Fatal(err)
		}
		if removed := m.Log()[before:]; len(removed) != 2 { // the root, and the scratch with its disk
			t.Errorf("%d layers: %d changes: %v", n, len(removed), removed)
		} else if fmt.Sprint(told) != fmt.Sprint(removed) {
			t.Errorf("%d layers: a dry run says %v instead of %v", n, told, removed)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("the state directory: %v", err)
		}
	}
}
