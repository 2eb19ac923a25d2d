package bootimage_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stratavm/strata/internal/bootimage"
)

func TestMinMemory(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, size int64) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const mib = 1 << 20
	for _, tt := range []struct {
		kernel, initrd int64
		want           int
	}{
		{10 * mib, 0, 70}, {100 * mib, 0, 106}, {10 * mib, 20 * mib, 130}, {10 * mib, 20*mib + 1, 131},
	} {
		got, err := bootimage.MinMemoryMiB(file("kernel", tt.kernel), file("initrd", tt.initrd))
		if err != nil || got != tt.want {
			t.Errorf("kernel %d, initrd %d: %d MiB, %v; want %d", tt.kernel, tt.initrd, got, err, tt.want)
		}
	}
	exe, err := os.Executable() // an ELF file on Linux
	if err != nil {
		t.Fatal(err)
	}
	if n, err := bootimage.MinMemoryMiB(exe, file("initrd", 0)); err != nil || n <= 0 {
		t.Errorf("this program as a kernel: %d MiB, %v", n, err)
	}
	if n, err := bootimage.MinMemoryMiB(file("kernel", 10*mib), ""); err != nil || n != 70 {
		t.Errorf("a kernel without an initrd: %d MiB, %v; want 70", n, err)
	}
	none := filepath.Join(dir, "none")
	for _, files := range [][2]string{{none, file("initrd", 0)}, {file("kernel", mib), none}} {
		if _, err := bootimage.MinMemoryMiB(files[0], files[1]); err == nil {
			t.Errorf("of %q one does not exist, and it has a size", files)
		}
	}
}
