package vhd_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/format/vhd"
)

// newVHDX creates an empty VHDX.
func newVHDX(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "new.vhdx")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	length, err := vhd.WriteVHDX(f, size)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(length); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWriteVHDX(t *testing.T) {
	for _, size := range []int64{1 << 20, 4096 << 20, 4097 << 20, 20 << 30, 64 << 40} {
		f, length := open(t, newVHDX(t, size))
		got, err := vhd.ProbeVHDX(f, length)
		if want := (vhd.VHDX{Size: size, BlockSize: 1 << 20, SectorSize: 512}); err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
	for _, size := range []int64{-1, 0, 1<<20 + 512, 64<<40 + 1<<20} {
		if _, err := vhd.WriteVHDX(nil, size); err == nil {
			t.Errorf("%d bytes are accepted", size)
		}
	}
}

// TestQemuUsesVHDX has another program write to an empty disk, also behind the first entry of a sector
// bitmap, and read it again.
func TestQemuUsesVHDX(t *testing.T) {
	for _, tool := range []string{"qemu-img", "qemu-io"} {
		_, err := exec.LookPath(tool)
		treetest.Need(t, err == nil, tool, "install the package qemu-utils")
	}
	const size = 6 << 30
	path := newVHDX(t, size)
	treetest.Run(t, "qemu-img", "check", "-q", "-f", "vhdx", path)
	for _, at := range []string{"0", "4296015872", "6442385408"} { // 4 GiB + 1 MiB, and 64 KiB before the end
		treetest.Run(t, "qemu-io", "-f", "vhdx", "-c", "write -P 0xa5 "+at+" 64k", path)
		if out := treetest.Run(t, "qemu-io", "-f", "vhdx", "-c", "read -P 0xa5 "+at+" 64k", path); strings.Contains(out,
			"failed") {
			t.Error(out)
		}
	}
	treetest.Run(t, "qemu-img", "check", "-q", "-f", "vhdx", path)
	b, err := os.ReadFile(path)
	if err != nil || bytes.Count(b, bytes.Repeat([]byte{0xa5}, 64<<10)) != 3 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}
