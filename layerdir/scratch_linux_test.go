package layerdir_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/format/vhd"
	"github.com/stratavm/strata/layerdir"
)

// An unformatted scratch needs no programs, and is a disk that qemu-img finds nothing wrong with.
func TestUnformattedScratch(t *testing.T) {
	treetest.Need(t, haveProgram("qemu-img"), "qemu-img", "install the package qemu-utils")
	dir := t.TempDir()
	o := layerdir.ScratchOptions{Dir: filepath.Join(dir, "s"), CacheDir: filepath.Join(dir, "cache"), Unformatted: true}
	path, err := layerdir.CreateScratch(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	treetest.Run(t, "qemu-img", "check", "-q", path)
	if out := treetest.Run(t, "qemu-img", "info", path); !strings.Contains(out, "20 GiB (21474836480 bytes)") {
		t.Error(out)
	}
	if _, err := os.Stat(o.CacheDir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a template: %v", err)
	}
	if _, err := layerdir.CreateScratch(t.Context(), o); !errors.Is(err, fs.ErrExist) {
		t.Errorf("again: %v", err)
	}
}

func haveProgram(name string) bool {
	_, err := exec.LookPath(name)
	return err == nil
}

func TestScratch(t *testing.T) {
	base := t.TempDir()
	cache := filepath.Join(base, "cache")
	const size = 1 << 30
	for i, name := range []string{"-o evil", "with,comma=x", "first:second", "plain"} {
		o := layerdir.ScratchOptions{Dir: filepath.Join(base, name), Size: size, CacheDir: cache}
		if i == 0 {
			o.CacheDir = ""
		}
		path, err := layerdir.CreateScratch(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		got, err := vhd.ProbeVHDX(f, st.Size())
		if err != nil || got.Size != size || got.LogDirty || got.Differencing {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if used := st.Sys().(*syscall.Stat_t).Blocks * 512; used > 8<<20 {
			t.Errorf("%s: an empty scratch takes %d bytes", name, used)
		}
		raw := filepath.Join(t.TempDir(), "raw")
		treetest.Run(t, "qemu-img", "convert", "-f", "vhdx", "-O", "raw", path, raw)
		treetest.Run(t, "fsck.ext4", "-fn", raw)
		if _, err := layerdir.CreateScratch(t.Context(), o); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s, again: %v", name, err)
		}
	}
	// Nothing but the folders and the template.
	files, err := filepath.Glob(filepath.Join(base, "*"))
	if err != nil || len(files) != 5 {
		t.Errorf("left: %q, %v", files, err)
	}
	if files, _ := filepath.Glob(filepath.Join(cache, "*")); len(files) != 1 {
		t.Errorf("in the cache: %q", files)
	}
}

func TestScratchAtOnce(t *testing.T) {
	base := t.TempDir()
	var wg sync.WaitGroup
	errs := make([]error, 6)
	for i := range errs {
		wg.Go(func() {
			_, errs[i] = layerdir.CreateScratch(t.Context(), layerdir.ScratchOptions{
				Dir: filepath.Join(base, string(rune('a'+i/2))), Size: 64 << 20, CacheDir: filepath.Join(base, "cache")})
		})
	}
	wg.Wait()
	for i := 0; i < len(errs); i += 2 {
		// Of two for the same folder one wins, and the other is told.
		a, b := errs[i], errs[i+1]
		if (a == nil) == (b == nil) || !errors.Is(errors.Join(a, b), fs.ErrExist) {
			t.Errorf("two for one folder: %v; %v", a, b)
		}
	}
}

func TestScratchRefused(t *testing.T) {
	base := t.TempDir()
	for _, size := range []int64{-1, 1, 1 << 20, 1<<30 + 1, 1 << 50} {
		if _, err := layerdir.CreateScratch(t.Context(),
			layerdir.ScratchOptions{Dir: filepath.Join(base, "s"), Size: size}); err == nil {
			t.Errorf("a size of %d bytes was accepted", size)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := layerdir.CreateScratch(ctx,
		layerdir.ScratchOptions{Dir: filepath.Join(base, "s"), Size: 64 << 20}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	empty(t, base)
}

// TestDiskFull: a small file system stands for a full one.
func TestDiskFull(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	treetest.Run(t, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", dir)
	t.Cleanup(func() { treetest.Run(t, "umount", dir) })
	tar := treetest.Tar(t, entry{Name: "big", Body: strings.Repeat("x", 4<<20)})
	for _, f := range formats {
		_, err := layerdir.Convert(t.Context(),
			layerdir.Options{Format: f.format, Tar: bytes.NewReader(tar), Dir: filepath.Join(dir, "l")})
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "free some space") {
			t.Errorf("%s: %v", f.format, err)
		}
		empty(t, dir)
	}
}
