package e2e

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/internal/bootimage"
	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
)

// TestStartBesideRecover: who removes the directories of VMs that do not run takes none from a VM that is
// about to start and still has its boot image made.
func TestStartBesideRecover(t *testing.T) {
	need(t, "qemu-system-x86_64", "qemu-system-x86")
	bootimagetest.Image(t) // skips where there is no kernel
	dir := filepath.Join(t.TempDir(), "vm")
	var left atomic.Int32
	left.Store(1)
	h := onMessage{Handler: slog.DiscardHandler, message: "made", left: &left, f: func() {
		if err := strata.RemoveVM(t.Context(), dir); err != nil {
			t.Error(err)
		}
	}}
	vm, err := strata.StartVM(t.Context(), strata.VMOptions{Dir: dir, Boot: strata.BootOptions{
		InitPath: bootimagetest.Strata(t), CacheDir: t.TempDir(), Logger: slog.New(h),
	}})
	if err != nil {
		t.Fatal(err)
	}
	if left.Load() > 0 {
		t.Error("no boot image was made: nothing is tested")
	}
	if err := vm.Close(); err != nil {
		t.Error(err)
	}
	if err := strata.KillVM(context.Background(), dir); err != nil {
		t.Error(err)
	}
}

// TestTooLittleMemory: with a MiB less than its guest takes to boot no VM is started, and no directory is made.
func TestTooLittleMemory(t *testing.T) {
	init := bootimagetest.Strata(t)
	img := bootimagetest.ImageOf(t, init)
	least, err := bootimage.MinMemoryMiB(img.Kernel, img.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "vm")
	for what, o := range map[string]strata.VMOptions{
		"of an image that is made":  {Boot: strata.BootOptions{InitPath: init}},
		"of an image that is given": {Image: img},
	} {
		o.Dir, o.MemoryMiB = dir, least-1
		vm, err := strata.StartVM(t.Context(), o)
		if !errors.Is(err, strata.ErrMemory) {
			t.Errorf("a VM %s with %d of %d MiB: %v", what, least-1, least, err)
		}
		if vm != nil {
			t.Error(errors.Join(vm.Close(), strata.KillVM(context.Background(), dir)))
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("its directory is there: %v", err)
		}
	}
}
