package e2e

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stratavm/strata"
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
