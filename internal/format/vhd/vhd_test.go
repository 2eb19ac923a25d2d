package vhd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/format/vhd"
)

func TestFooterIsRead(t *testing.T) {
	for _, size := range []int64{512, 4096, 16 << 20, 2 << 30, 127 << 30, 2040 << 30, 4 << 40} {
		f, err := vhd.NewFooter(size)
		if err != nil {
			t.Fatal(err)
		}
		b := f.Marshal()
		if len(b) != vhd.FooterSize {
			t.Errorf("a footer of %d bytes", len(b))
		}
		got, err := vhd.ParseFooter(b)
		if err != nil || got != f {
			t.Errorf("%d bytes: got %+v, %v; want %+v", size, got, err, f)
		}
	}
}

// TestSameAsReference: but for id and geometry (which the reference leaves out) the bytes are those
// that Microsoft's own tool writes.
func TestSameAsReference(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.vhd")
	if err := os.WriteFile(path, make([]byte, 8192), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := tar2ext4.ConvertFileToVhd(path); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := b[8192:]
	f, err := vhd.Validate(bytes.NewReader(b), int64(len(b)))
	if err != nil || f.Size != 8192 {
		t.Fatalf("the reference's file: %+v, %v", f, err)
	}
	got := f.Marshal()
	copy(got[56:60], want[56:60])
	copy(got[64:68], want[64:68]) // the checksum, which includes the geometry
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%x\nwant\n%x", got, want)
	}
}

// TestQemu has another program read what is written, and reads what it writes.
func TestQemu(t *testing.T) {
	tool, err := exec.LookPath("qemu-img")
	treetest.Need(t, err == nil, "qemu-img", "install the package qemu-utils")
	dir := t.TempDir()
	run := func(args ...string) string { return treetest.Run(t, tool, args...) }
	ours := filepath.Join(dir, "ours.vhd")
	var b bytes.Buffer
	b.Write(make([]byte, 1<<20))
	if err := vhd.WriteFooter(&b, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ours, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := run("info", "-f", "vpc", ours); !strings.Contains(out, "1 MiB") {
		t.Errorf("qemu-img info:\n%s", out)
	}
	for _, c := range []struct {
		name, format, options string
		want                  error
	}{
		{"fixed", "vpc", "subformat=fixed,force_size=on", nil},
		{"dynamic", "vpc", "subformat=dynamic,force_size=on", vhd.ErrNotFixed},
	} {
		path := filepath.Join(dir, c.name)
		run("create", "-q", "-f", c.format, "-o", c.options, path, "4M")
		f, size := open(t, path)
		if _, err := vhd.Validate(f, size); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	path := filepath.Join(dir, "x.vhdx")
	run("create", "-q", "-f", "vhdx", "-o", "block_size=2097152", path, "5G")
	f, size := open(t, path)
	got, err := vhd.ProbeVHDX(f, size)
	if want := (vhd.VHDX{Size: 5 << 30, BlockSize: 2 << 20, SectorSize: 512}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func open(t *testing.T, path string) (*os.File, int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return f, st.Size()
}

func TestBadFiles(t *testing.T) {
	file := func(change func(b []byte) []byte) []byte {
		f, err := vhd.NewFooter(8192)
		if err != nil {
			t.Fatal(err)
		}
		return change(append(make([]byte, 8192), f.Marshal()...))
	}
	// retype changes the kind of disk and mends the checksum.
	retype := func(kind byte) func(b []byte) []byte {
		return func(b []byte) []byte {
			foot := b[8192:]
			sum := ^binary.BigEndian.Uint32(foot[64:]) - uint32(foot[63]) + uint32(kind)
			foot[63] = kind
			binary.BigEndian.PutUint32(foot[64:], ^sum)
			return b
		}
	}
	for _, c := range []struct {
		name string
		file []byte
		want error
	}{
		{"good", file(func(b []byte) []byte { return b }), nil},
		{"empty", nil, vhd.ErrNotVHD},
		{"short", make([]byte, 511), vhd.ErrNotVHD},
		{"raw", make([]byte, 8192), vhd.ErrNotVHD},
		{"cut at the end", file(func(b []byte) []byte { return b[:len(b)-1] }), vhd.ErrNotVHD},
		{"cut in the middle", file(func(b []byte) []byte { return b[4096:] }), vhd.ErrWrongSize},
		{"appended to", file(func(b []byte) []byte { return append(make([]byte, 512), b...) }), vhd.ErrWrongSize},
		{"one bit changed", file(func(b []byte) []byte { b[8192+100] ^= 1; return b }), vhd.ErrChecksum},
		{"dynamic", file(retype(3)), vhd.ErrNotFixed},
		{"differencing", file(retype(4)), vhd.ErrNotFixed},
		{"unknown type", file(retype(9)), vhd.ErrNotFixed},
	} {
		if _, err := vhd.Validate(bytes.NewReader(c.file), int64(len(c.file))); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	for _, size := range []int64{-512, 0, 1, 513} {
		if _, err := vhd.NewFooter(size); !errors.Is(err, vhd.ErrInvalidSize) {
			t.Errorf("a disk of %d bytes: %v", size, err)
		}
	}
}

// vhdx creates a small VHDX by way of qemu-img, with only what is probed.
func vhdx(t testing.TB) []byte {
	t.Helper()
	tool, err := exec.LookPath("qemu-img")
	treetest.Need(t, err == nil, "qemu-img", "install the package qemu-utils")
	path := filepath.Join(t.TempDir(), "x.vhdx")
	treetest.Run(t, tool, "create", "-q", "-f", "vhdx", "-o", "log_size=1048576", path, "64M")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBadVHDX(t *testing.T) {
	whole := vhdx(t)
	if _, err := vhd.ProbeVHDX(bytes.NewReader(whole), int64(len(whole))); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte
		want   error
	}{
		{"empty", func([]byte) []byte { return nil }, vhd.ErrNotVHDX},
		{"another format", func(b []byte) []byte { b[0] = 'V'; return b }, vhd.ErrNotVHDX},
		{"cut after the headers", func(b []byte) []byte { return b[:300<<10] }, vhd.ErrVHDXDamaged},
		{"one header damaged", func(b []byte) []byte { b[64<<10+100]++; return b }, nil},
		{"both headers damaged", func(b []byte) []byte { b[64<<10+100]++; b[128<<10+100]++; return b }, vhd.ErrVHDXDamaged},
		{"one region table damaged", func(b []byte) []byte { b[192<<10+20]++; return b }, nil},
		{"both region tables damaged", func(b []byte) []byte { b[192<<10+20]++; b[256<<10+20]++; return b },
			vhd.ErrVHDXDamaged},
	} {
		b := c.change(bytes.Clone(whole))
		if _, err := vhd.ProbeVHDX(bytes.NewReader(b), int64(len(b))); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

func FuzzValidate(f *testing.F) {
	foot, err := vhd.NewFooter(512)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(make([]byte, 512), foot.Marshal()...))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := vhd.Validate(bytes.NewReader(b), int64(len(b)))
		if err == nil && got.Size != int64(len(b))-vhd.FooterSize {
			t.Fatalf("a file of %d bytes was accepted as a disk of %d", len(b), got.Size)
		}
	})
}

// FuzzProbeVHDX changes the parts that are probed; zeroes between them are left out of the input.
func FuzzProbeVHDX(f *testing.F) {
	b := vhdx(f)
	region := binary.LittleEndian.Uint64(b[192<<10+16+32+16:]) // of the second entry: qemu-img puts metadata there
	if region > uint64(len(b))-(65<<10) {
		region = 2 << 20
	}
	f.Add(b[64<<10:64<<10+128], b[192<<10:192<<10+96], b[region:region+256], b[region+64<<10:region+64<<10+64])
	f.Fuzz(func(t *testing.T, head, regions, table, items []byte) {
		file := bytes.Clone(b[:min(len(b), int(region)+65<<10)])
		for at, part := range map[int][]byte{64 << 10: head, 128 << 10: head, 192 << 10: regions, 256 << 10: regions,
			int(region): table, int(region) + 64<<10: items} {
			if at < len(file) {
				copy(file[at:], part)
			}
		}
		v, err := vhd.ProbeVHDX(bytes.NewReader(file), int64(len(file)))
		if err == nil && (v.Size <= 0 || v.Size > 64<<40 || v.BlockSize < 1<<20) {
			t.Fatalf("accepted: %+v", v)
		}
	})
}
