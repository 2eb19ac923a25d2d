package uvm

import (
	"context"
	"errors"
	"testing"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// TestVPMEMAlign: a file whose content does not suit the machine's persistent memory is refused before
// anything is attached, so that the caller can take SCSI.
func TestVPMEMAlign(t *testing.T) {
	limits := vmmtest.LinuxLimits()
	limits.VPMEMAlign = 2 << 20
	fake := vmmtest.New("align", vmm.Linux, limits)
	vm, err := Open(t.Context(), "", func(context.Context) (vmm.Machine, error) { return fake, nil }, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	c, err := vm.Claim(t.Context(), "c", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path  string
		bytes int64
		fits  bool
	}{
		{"/a/layer.vhd", 2<<20 + 512, true},
		{"/b/layer.vhd", 2 << 20, false},
		{"/c/layer.erofs", 2 << 20, true},
		{"/d/layer.erofs", 2<<20 + 4096, false},
	} {
		before := len(fake.Log())
		_, err := vm.VPMEM().Attach(t.Context(), c, "layer", PMEM{Path: tt.path, Bytes: tt.bytes})
		if tt.fits && err != nil || !tt.fits && !errors.Is(err, ErrVPMEMAlign) {
			t.Errorf("%s of %d bytes: %v", tt.path, tt.bytes, err)
		}
		if made := len(fake.Log()) - before; tt.fits != (made > 0) {
			t.Errorf("%s of %d bytes: %d changes", tt.path, tt.bytes, made)
		}
	}
	if err := c.Release(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// TestVerityIsNotDropped: a mount that is to be checked shares none that is not, or by another tree, and
// is refused where the guest cannot check it.
func TestVerityIsNotDropped(t *testing.T) {
	f, vm := newLinux(t)
	c := mustClaim(t, vm, "c")
	seen := map[string]bool{}
	for _, v := range []*vmm.Verity{nil, {RootDigest: "one"}, {RootDigest: "two"}, {RootDigest: "one"}} {
		pmem, err := vm.VPMEM().Attach(t.Context(), c, "layer", PMEM{Path: "/l/pmem", Bytes: 4096, Verity: v})
		if err != nil {
			t.Fatal(err)
		}
		disk, err := vm.SCSI().Attach(t.Context(), c, "layer",
			Disk{Path: "/l/disk", ReadOnly: true, Mount: &DiskMount{Verity: v}})
		if err != nil {
			t.Fatal(err)
		}
		seen[pmem.GuestPath()], seen[disk.GuestPath()] = true, true
	}
	if len(seen) != 6 {
		t.Errorf("mounts of two files, each unchecked and with two trees: %v", seen)
	}
	if err := c.Release(t.Context(), nil); err != nil {
		t.Error(err)
	}
	checkEmpty(t, f, vm)

	limits := vmmtest.LinuxLimits()
	limits.Verity = false
	f = vmmtest.New("blind", vmm.Linux, limits)
	vm = openFake(t, f, "")
	c = mustClaim(t, vm, "c")
	_, err1 := vm.VPMEM().Attach(t.Context(), c, "layer",
		PMEM{Path: "/l/pmem", Bytes: 4096, Verity: &vmm.Verity{RootDigest: "one"}})
	_, err2 := vm.SCSI().Attach(t.Context(), c, "layer",
		Disk{Path: "/l/disk", ReadOnly: true, Mount: &DiskMount{Verity: &vmm.Verity{RootDigest: "one"}}})
	if !errors.Is(err1, ErrNotSupported) || !errors.Is(err2, ErrNotSupported) || len(f.Log()) > 0 {
		t.Errorf("a guest that cannot check: %v, %v, %q", err1, err2, f.Log())
	}
}
