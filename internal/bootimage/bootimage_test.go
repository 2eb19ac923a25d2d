package bootimage

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	ulikunitz "github.com/ulikunitz/xz"

	"github.com/stratavm/strata/internal/format/cpio"
	"github.com/stratavm/strata/vmm"
)

func TestCompareReleases(t *testing.T) {
	want := []string{"5.15.0-91-generic", "6.1.0-9-amd64", "6.1.0-56-amd64", "6.1.0-56-amd64-x", "6.9.1", "6.10.0-1"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, compareReleases)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// pvhKernel is the smallest ELF file with the note of a PVH entry, followed by size bytes.
func pvhKernel(owner string, size int) []byte {
	note := new(bytes.Buffer)
	for _, v := range []uint32{4, 8, 18} {
		_ = binary.Write(note, binary.LittleEndian, v)
	}
	note.WriteString(owner + "\x00\x00\x00\x01\x00\x00\x00\x00")
	h := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Phoff: 64, Ehsize: 64, Phentsize: 56,
		Phnum: 1,
	}
	p := elf.Prog64{Type: uint32(elf.PT_NOTE), Off: 120, Filesz: uint64(note.Len()), Memsz: uint64(note.Len())}
	b := new(bytes.Buffer)
	_ = binary.Write(b, binary.LittleEndian, h)
	_ = binary.Write(b, binary.LittleEndian, p)
	b.Write(note.Bytes())
	for i := range size {
		b.WriteByte(byte(i * i >> 8))
	}
	return b.Bytes()
}

// bzImage packs a kernel as the kernel's build does: setup sectors, then the payload with its
// uncompressed size as its last four bytes.
func bzImage(kernel, packed []byte) []byte {
	b := make([]byte, 3*512+16)
	copy(b[0x202:], "HdrS")
	b[0x1f1] = 2
	binary.LittleEndian.PutUint16(b[0x206:], 0x20f)
	binary.LittleEndian.PutUint32(b[0x248:], 16)
	binary.LittleEndian.PutUint32(b[0x24c:], uint32(len(packed)+4))
	b = append(b, packed...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(kernel)))
	return append(b, "what follows is no part of it"...)
}

func pack(t *testing.T, format string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch format {
	case "gzip":
		w = gzip.NewWriter(&out)
	case "zstd":
		w, err = zstd.NewWriter(&out)
	case "xz":
		w, err = ulikunitz.WriterConfig{CheckSum: ulikunitz.CRC32}.NewWriter(&out)
	case "lz4":
		lw := lz4.NewWriter(&out)
		err = lw.Apply(lz4.LegacyOption(true))
		w = lw
	case "none":
		return b
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestExtractKernel(t *testing.T) {
	kernel := pvhKernel("Xen\x00", 100000)
	for _, format := range []string{"gzip", "zstd", "xz", "lz4", "none"} {
		t.Run(format, func(t *testing.T) {
			payload, size, err := bzImagePayload(bzImage(kernel, pack(t, format, kernel)))
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := decompressKernel(&got, payload, size); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), kernel) {
				t.Errorf("got %d bytes that differ from the %d of the kernel", got.Len(), len(kernel))
			}
			if err := checkPVH(bytes.NewReader(got.Bytes())); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestKernelIsNotKept: unpacking a kernel takes much less memory than the kernel, which is written as it comes. A full
// disk is not taken for a fault of the kernel.
func TestKernelIsNotKept(t *testing.T) {
	const size = 48 << 20
	kernel := pvhKernel("Xen\x00", 1<<20)
	kernel = append(kernel, make([]byte, size-len(kernel))...)
	for format, bound := range map[string]uint64{
		"gzip": size, "zstd": size, "xz": size, "none": size, "lz4": 2 * size, // which allocates each block anew
	} {
		t.Run(format, func(t *testing.T) {
			payload, n, err := bzImagePayload(bzImage(kernel, pack(t, format, kernel)))
			if err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			var out counter
			err = decompressKernel(&out, payload, n)
			runtime.ReadMemStats(&after)
			if err != nil || out != size {
				t.Errorf("%d bytes, %v", out, err)
			}
			// All that was ever allocated, so that it does not depend on when garbage is collected: a slice that grows to
			// the size of the kernel is more than twice that.
			if used := after.TotalAlloc - before.TotalAlloc; used > bound {
				t.Errorf("%d MiB were allocated for a kernel of %d MiB", used>>20, size>>20)
			}
			if err := decompressKernel(fullDisk{}, payload, n); !errors.Is(err, errFull) || errors.Is(err, errKernelForm) {
				t.Errorf("on a full disk: %v", err)
			}
		})
	}
}

// counter counts what is written to it.
type counter int64

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

var errFull = errors.New("full")

// fullDisk takes nothing.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errFull }

func TestExtractKernelRefuses(t *testing.T) {
	kernel := pvhKernel("Xen\x00", 10000)
	good := bzImage(kernel, pack(t, "gzip", kernel))
	mutate := func(f func(b []byte)) []byte { b := bytes.Clone(good); f(b); return b }
	for name, b := range map[string][]byte{
		"empty":        nil,
		"no header":    make([]byte, 4096),
		"old protocol": mutate(func(b []byte) { b[0x206], b[0x207] = 7, 2 }),
		"cut":          good[:1600],
		"huge":         mutate(func(b []byte) { binary.LittleEndian.PutUint32(b[0x24c:], 0xffffffff) }),
		"wrong size":   bzImage(kernel[:5000], pack(t, "gzip", kernel)),
		"lzo":          bzImage(kernel, []byte("\x89LZO\x00\r\n\x1a\n and so on")),
		"no ELF":       bzImage(make([]byte, 2000), pack(t, "gzip", make([]byte, 2000))),
		"no PVH":       bzImage(pvhKernel("GNU\x00", 9), pack(t, "gzip", pvhKernel("GNU\x00", 9))),
	} {
		payload, size, err := bzImagePayload(b)
		if err == nil {
			var k bytes.Buffer
			if err = decompressKernel(&k, payload, size); err == nil {
				err = checkPVH(bytes.NewReader(k.Bytes()))
			}
		}
		if !errors.Is(err, errKernelForm) {
			t.Errorf("%s: got %v, want %v", name, err, errKernelForm)
		}
	}
}

// host creates a host with a kernel and modules below a temporary folder.
func host(t *testing.T, format string) Options {
	t.Helper()
	dir := t.TempDir()
	o := Options{
		KernelDir: filepath.Join(dir, "boot"), ModulesDir: filepath.Join(dir, "modules"), CacheDir: filepath.Join(dir,
			"cache"),
		Mkfs: none, Runtime: none, Pause: none, InitPath: staticProgram(t),
	}
	kernel := pvhKernel("Xen\x00", 100)
	write(t, filepath.Join(o.KernelDir, "vmlinuz-6.1.0-9-test"), bzImage(kernel, pack(t, "gzip", kernel)))
	mods := filepath.Join(o.ModulesDir, "6.1.0-9-test")
	ext := map[string]string{"none": ".ko", "xz": ".ko.xz", "zstd": ".ko.zst", "gzip": ".ko.gz"}[format]
	var dep strings.Builder
	for name, needs := range map[string][]string{
		"virtio": {"virtio_ring"}, "virtio_ring": nil, "virtio_pci": {"virtio", "virtio_ring"},
		"virtio_scsi": {"scsi_mod", "virtio", "virtio_ring"}, "scsi_mod": nil, "sd_mod": {"scsi_mod"},
		"ext4": {"mbcache"}, "mbcache": nil, "dm-verity": {"dm-bufio", "dm-mod"}, "dm-bufio": {"dm-mod"}, "dm-mod": nil,
	} {
		write(t, filepath.Join(mods, "kernel", name+ext), pack(t, format, moduleContent(name)))
		fmt.Fprintf(&dep, "kernel/%s%s:", name, ext)
		for _, n := range needs {
			fmt.Fprintf(&dep, " kernel/%s%s", n, ext)
		}
		dep.WriteString("\n")
	}
	write(t, filepath.Join(mods, "modules.dep"), []byte(dep.String()))
	write(t, filepath.Join(mods, "modules.builtin"), []byte("kernel/virtio-console.ko\nkernel/fs/overlay.ko\n"))
	return o
}

func moduleContent(name string) []byte { return []byte("\x7fELF module " + name) }

// staticProgram is an ELF file without libraries that looks as if it carried the agent.
func staticProgram(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "init")
	write(t, path, append(programFor(hostMachine()), agentMarker()...))
	return path
}

// programFor is an ELF file without libraries.
func programFor(m elf.Machine) []byte {
	b := pvhKernel("Go\x00\x00", 10)
	binary.LittleEndian.PutUint16(b[18:], uint16(m))
	return b
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b, 0o644)); err != nil {
		t.Fatal(err)
	}
}

func unpack(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string]string{}
	for r := cpio.NewReader(bufio.NewReader(f)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		b, err2 := io.ReadAll(r)
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		if _, ok := out[h.Name]; ok {
			t.Errorf("%s is there twice", h.Name)
		}
		if dir, ok := out[filepath.ToSlash(filepath.Dir(h.Name))]; !ok && strings.Contains(h.Name, "/") && dir == "" &&
			h.Name[:4] != "dev/" {
			t.Errorf("%s comes before its directory", h.Name)
		}
		out[h.Name] = string(b)
	}
}

func TestBuild(t *testing.T) {
	for _, format := range []string{"none", "xz", "zstd", "gzip"} {
		t.Run(format, func(t *testing.T) {
			o := host(t, format)
			img, err := Build(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if img.KernelRelease != "6.1.0-9-test" {
				t.Errorf("release %q", img.KernelRelease)
			}
			if k, err := os.ReadFile(img.Kernel); err != nil || !bytes.Equal(k, pvhKernel("Xen\x00", 100)) {
				t.Errorf("the kernel is not the unpacked one (%v)", err)
			}
			files := unpack(t, img.Initrd)
			wantEarly := "virtio_ring.ko\nvirtio.ko\nvirtio_pci.ko\n"
			if d := cmp.Diff(wantEarly, files["lib/modules.strata"]); d != "" {
				t.Error(d)
			}
			wantLazy := "virtio_scsi: scsi_mod.ko virtio_scsi.ko\nsd_mod: scsi_mod.ko sd_mod.ko\n" +
				"ext4: mbcache.ko ext4.ko\ndm-verity: dm_mod.ko dm_bufio.ko dm_verity.ko\n"
			if d := cmp.Diff(wantLazy, files["lib/modules.strata.lazy"]); d != "" {
				t.Error(d)
			}
			for _, name := range []string{"ext4", "dm_bufio"} {
				want := string(moduleContent(strings.ReplaceAll(name, "_", "-")))
				if got := files["lib/modules/"+name+".ko"]; got != want {
					t.Errorf("module %s has %q, want %q", name, got, want)
				}
			}
			for _, name := range []string{"init", "dev/console", "proc", "sys", "tmp"} {
				if _, ok := files[name]; !ok {
					t.Errorf("%s is missing in %v", name, slices.Sorted(maps.Keys(files)))
				}
			}
		})
	}
}

func TestBuildIsCached(t *testing.T) {
	o := host(t, "none")
	var wg sync.WaitGroup
	images := make([]vmm.BootImage, 8)
	for i := range images {
		wg.Go(func() {
			var err error
			if images[i], err = Build(t.Context(), o); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, img := range images[1:] {
		if d := cmp.Diff(images[0], img); d != "" {
			t.Error(d)
		}
	}
	entries, err := os.ReadDir(o.CacheDir)
	if err != nil || len(entries) != 2 {
		t.Errorf("the cache has %v, want a kernel and an initrd (%v)", entries, err)
	}
	before, err := os.Stat(images[0].Initrd)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(images[0].Initrd); err != nil || !os.SameFile(before, after) {
		t.Errorf("made again although nothing changed (%v)", err)
	}
	write(t, o.InitPath, append(append(programFor(hostMachine()), 1), agentMarker()...))
	changed, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if changed.Initrd == images[0].Initrd || changed.Kernel != images[0].Kernel {
		t.Errorf("another init gave %+v after %+v", changed, images[0])
	}
	old := time.Now().Add(-2 * keep)
	if err := os.Chtimes(images[0].Initrd, old, old); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(images[0].Initrd); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an initrd that nobody wants is kept (%v)", err)
	}
}

func TestBuildRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, o *Options)
		want   error
		text   string
	}{
		{"no kernel", func(t *testing.T, o *Options) { o.KernelDir = t.TempDir() }, ErrNoKernel, "apt-get install"},
		{"no modules", func(t *testing.T, o *Options) { o.ModulesDir = t.TempDir() }, ErrNoKernel, "modules.dep"},
		{"a module is missing", func(t *testing.T, o *Options) {
			write(t, filepath.Join(o.ModulesDir, "6.1.0-9-test", "modules.builtin"), nil)
		}, ErrModule, "virtio_console"},
		{"init is a script", func(t *testing.T, o *Options) { write(t, o.InitPath, []byte("#!/bin/sh\n")) }, nil,
			"CGO_ENABLED=0"},
		{"init is not there", func(t *testing.T, o *Options) { o.InitPath += "x" }, fs.ErrNotExist, "initx"},
		{"a damaged module", func(t *testing.T, o *Options) {
			write(t, filepath.Join(o.ModulesDir, "6.1.0-9-test", "kernel", "ext4.ko"), []byte("\x1f\x8bgarbage that is no gzip"))
		}, nil, "ext4.ko"},
		{"the cache is a file", func(t *testing.T, o *Options) { write(t, o.CacheDir, nil) }, nil, "cache"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := host(t, "none")
			tt.change(t, &o)
			_, err := Build(t.Context(), o)
			if err == nil || (tt.want != nil && !errors.Is(err, tt.want)) || !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("got %v, want %v with %q", err, tt.want, tt.text)
			}
			left, _ := filepath.Glob(filepath.Join(o.CacheDir, ".new-*"))
			if len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestNewestKernelWithModules(t *testing.T) {
	o := host(t, "none")
	// A newer kernel whose modules are gone is passed over.
	write(t, filepath.Join(o.KernelDir, "vmlinuz-6.10.0-1-test"), []byte("not looked at"))
	img, err := Build(t.Context(), o)
	if err != nil || img.KernelRelease != "6.1.0-9-test" {
		t.Errorf("got %q, %v", img.KernelRelease, err)
	}
}

// TestKernelAsItIs: what cannot be unpacked is booted unchanged.
func TestKernelAsItIs(t *testing.T) {
	o := host(t, "none")
	path := filepath.Join(o.KernelDir, "vmlinuz-6.1.0-9-test")
	kernel := pvhKernel("GNU\x00", 50)
	for name, b := range map[string][]byte{
		"no PVH":      bzImage(kernel, pack(t, "xz", kernel)),
		"arm64 Image": append([]byte("MZ\x00\x91"), make([]byte, 4096)...),
	} {
		write(t, path, b)
		if img, err := Build(t.Context(), o); err != nil || img.Kernel != path {
			t.Errorf("%s: got %q, %v", name, img.Kernel, err)
		}
	}
}

func TestProgramBringsItsLibraries(t *testing.T) {
	sh, err := filepath.EvalSymlinks("/bin/sh")
	if runtime.GOOS != "linux" || err != nil {
		t.Skip("needs a Linux host with /bin/sh")
	}
	files, err := program(sh, "bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(sh)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	libs, err := f.ImportedLibraries()
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, f := range files {
		have[filepath.Base(f.name)] = true
		if strings.HasPrefix(f.name, "/") {
			t.Errorf("%s is not relative", f.name)
		}
	}
	for _, l := range append(libs, "sh") {
		if !have[l] {
			t.Errorf("%s is missing in %v", l, have)
		}
	}
}

func FuzzBzImagePayload(f *testing.F) {
	k := pvhKernel("Xen\x00", 10)
	f.Add(bzImage(k, k))
	f.Fuzz(func(t *testing.T, b []byte) {
		payload, size, err := bzImagePayload(b)
		if err != nil {
			return
		}
		if size <= 1<<20 { // what is asked for is bounded; keep the fuzzer's memory small too
			var k bytes.Buffer
			if err := decompressKernel(&k, payload, size); err == nil {
				_ = checkPVH(bytes.NewReader(k.Bytes()))
			}
		}
	})
}
