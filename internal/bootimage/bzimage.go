package bootimage

import (
	"bytes"
	"compress/bzip2"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"
)

// errKernelForm: a kernel contains no ELF image with a PVH entry point, and is booted as it is.
var errKernelForm = errors.New("no directly bootable ELF image inside")

// maxKernel bounds an uncompressed kernel, maxModule a module, in bytes.
const (
	maxKernel = 512 << 20
	maxModule = 64 << 20
)

// bzImagePayload returns the compressed kernel in an x86 bzImage and its uncompressed size, by the setup header of the
// Linux/x86 boot protocol (2.08 and later).
func bzImagePayload(image []byte) (payload []byte, size int64, err error) {
	const headerEnd = 0x250
	if len(image) < headerEnd || string(image[0x202:0x206]) != "HdrS" {
		return nil, 0, fmt.Errorf("not an x86 bzImage: %w", errKernelForm)
	}
	le := binary.LittleEndian
	if v := le.Uint16(image[0x206:]); v < 0x208 {
		return nil, 0, fmt.Errorf("boot protocol %#x tells no payload: %w", v, errKernelForm)
	}
	sectors := int64(image[0x1f1])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*512 + int64(le.Uint32(image[0x248:]))
	length := int64(le.Uint32(image[0x24c:]))
	if length < 8 || start+length > int64(len(image)) {
		return nil, 0, fmt.Errorf("payload of %d bytes at %d is not in the file of %d: %w", length, start, len(image),
			errKernelForm)
	}
	payload = image[start : start+length]
	size = int64(le.Uint32(payload[length-4:]))
	if size > maxKernel {
		return nil, 0, fmt.Errorf("uncompressed size %d is absurd: %w", size, errKernelForm)
	}
	return payload[:length-4], size, nil
}

// formats are the compression formats of kernels and modules, by their magic bytes. The decoders use little more memory
// than the window of the stream.
var formats = []struct {
	name, magic string
	open        func(io.Reader) (io.Reader, error)
}{
	{"gzip", "\x1f\x8b", func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
	{"xz", "\xfd7zXZ\x00", func(r io.Reader) (io.Reader, error) { return xz.NewReader(r, xz.DefaultDictMax) }},
	{"zstd", "\x28\xb5\x2f\xfd", func(r io.Reader) (io.Reader, error) {
		return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(maxKernel))
	}},
	{"lz4", "\x02\x21\x4c\x18", func(r io.Reader) (io.Reader, error) { return lz4.NewReader(r), nil }},
	{"bzip2", "BZh", func(r io.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil }},
	{"none", elf.ELFMAG, func(r io.Reader) (io.Reader, error) { return r, nil }},
}

// decompress decompresses b, of any of formats, to w, and returns the number of bytes. More than limit is an error.
func decompress(w io.Writer, b []byte, limit int64) (int64, error) {
	for _, f := range formats {
		if !bytes.HasPrefix(b, []byte(f.magic)) {
			continue
		}
		r, err := f.open(bytes.NewReader(b))
		if err != nil {
			return 0, fmt.Errorf("%s: %w", f.name, err)
		}
		n, err := io.Copy(w, io.LimitReader(r, limit+1))
		if c, ok := r.(interface{ Close() }); ok {
			c.Close() // zstd's decoder
		}
		if err != nil {
			return n, fmt.Errorf("%s: %w", f.name, err)
		}
		if n > limit {
			return n, fmt.Errorf("%s: more than %d bytes", f.name, limit)
		}
		return n, nil
	}
	return 0, fmt.Errorf("unknown compression (%x)", b[:min(4, len(b))])
}

// decompressKernel unpacks a kernel of size bytes to w, which is much larger than what this keeps in memory.
func decompressKernel(w io.Writer, payload []byte, size int64) error {
	out := &remember{w: w}
	// The limit is the exact size: the stream is followed by padding.
	n, err := decompress(out, payload, size)
	if out.err != nil {
		return out.err // an error of w, not of the kernel
	}
	if err != nil {
		return fmt.Errorf("unpacking: %w: %w", err, errKernelForm)
	}
	if n != size {
		return fmt.Errorf("unpacked to %d bytes instead of %d: %w", n, size, errKernelForm)
	}
	return nil
}

// remember is a writer that keeps its error.
type remember struct {
	w   io.Writer
	err error
}

func (r *remember) Write(b []byte) (int, error) {
	n, err := r.w.Write(b)
	r.err = errors.Join(r.err, err)
	return n, err
}

// checkPVH returns an error unless QEMU can boot an ELF kernel directly: it needs the note with the PVH entry point
// (owner "Xen", type 18, XEN_ELFNOTE_PHYS32_ENTRY).
func checkPVH(vmlinux io.ReaderAt) error {
	f, err := elf.NewFile(vmlinux)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errKernelForm)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<20 {
			continue
		}
		notes := make([]byte, p.Filesz)
		if _, err := p.ReadAt(notes, 0); err != nil {
			return fmt.Errorf("%w: %w", err, errKernelForm)
		}
		if hasNote(notes, f.ByteOrder, "Xen\x00", 18) {
			return nil
		}
	}
	return fmt.Errorf("no PVH entry point: %w", errKernelForm)
}

// hasNote walks the notes of an ELF segment: sizes of name and description, type, name, description.
func hasNote(b []byte, order binary.ByteOrder, owner string, kind uint32) bool {
	for len(b) >= 12 {
		nameLen, descLen := int64(order.Uint32(b)), int64(order.Uint32(b[4:]))
		t := order.Uint32(b[8:])
		next := 12 + (nameLen+3)&^3 + (descLen+3)&^3
		if next > int64(len(b)) {
			return false
		}
		if t == kind && string(b[12:12+nameLen]) == owner {
			return true
		}
		b = b[next:]
	}
	return false
}
