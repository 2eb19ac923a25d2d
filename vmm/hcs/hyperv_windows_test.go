package hcs_test

import (
	"cmp"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stratavm/strata/internal/format/vhd"
	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs"
)

// TestHyperV has the Host Compute Service of this Windows start a VM, attach a disk to it, detach it, and end it.
func TestHyperV(t *testing.T) {
	if os.Getenv("STRATA_HYPERV") != "1" {
		t.Skip("it starts a VM: set STRATA_HYPERV=1 on a host with Hyper-V (and STRATA_BOOT_FILES, where the kernel is " +
			"elsewhere)")
	}
	host, err := hcs.NativeHost()
	if err != nil {
		t.Fatal(err)
	}
	host.Grant = wclayer.NewNative(nil, "").GrantVMAccess
	boot := cmp.Or(os.Getenv("STRATA_BOOT_FILES"), `C:\Program Files\Linux Containers`)
	o := hcs.DefaultLCOW("strata-test-"+rand.Text()[:8], "strata-test", boot, hcs.Build())
	o.ExternalGuestConnection, o.ForwardStderr = false, false // as strata.exe has it
	ctx, _ := within(t)
	m, err := hcs.CreateLCOW(ctx, host, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if there, err := hcs.Inspect(ctx, host.API, o.ID); there || err != nil {
			t.Errorf("after the end there is a VM: %v, %v", there, err)
		}
	}()
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	disk := vmm.Change{Op: vmm.Add, Device: vmm.SCSIDisk{LUN: 1, Path: emptyDisk(t), Access: vmm.AccessIndividual}}
	for _, c := range []vmm.Change{disk, disk.Inverse()} {
		if err := m.Apply(ctx, c); err != nil {
			t.Error(err)
		}
	}
	if err := m.Terminate(ctx); err != nil {
		t.Error(err)
	}
	if !errors.Is(m.Err(), vmm.ErrGone) {
		t.Errorf("the VM after its end: %v", m.Err())
	}
}

func emptyDisk(t *testing.T) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.vhdx"))
	if err != nil {
		t.Fatal(err)
	}
	length, err := vhd.WriteVHDX(f, 16<<20)
	if err := errors.Join(err, f.Truncate(length), f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}
