package image

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

const (
	maxZstdWindow = 128 << 20 // what zstd --long needs
	maxXZDict     = 64 << 20  // what xz -9 needs
)

// otherPackers are the magic numbers of formats that are not supported.
var otherPackers = map[string]string{
	"lz4": "\x04\x22\x4d\x18", "lzip": "LZIP\x01", "compress": "\x1f\x9d", "lzop": "\x89LZO", "zip": "PK\x03\x04",
	"7-Zip": "7z\xbc\xaf",
}

// decompress is Decompress without reading ahead in a goroutine.
func decompress(r io.Reader) (content io.ReadCloser, compressed bool, err error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(10)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, err
	}
	starts := func(s string) bool { return bytes.HasPrefix(magic, []byte(s)) }
	switch {
	case starts("\x1f\x8b"):
		z, err := newGunzip(br)
		if err != nil {
			return nil, false, fmt.Errorf("gzip: %w: %w", ErrCorrupt, err)
		}
		return io.NopCloser(z), true, nil
	case isZstd(magic):
		// One frame at a time, without goroutines: layers are decompressed in parallel.
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, false, fmt.Errorf("zstd: %w: %w", ErrCorrupt, err)
		}
		return z.IOReadCloser(), true, nil
	case starts("\xfd7zXZ\x00"):
		z, err := xz.NewReader(br, maxXZDict)
		if err != nil {
			return nil, false, fmt.Errorf("xz: %w: %w", ErrCorrupt, err)
		}
		return io.NopCloser(z), true, nil
	case starts("BZh") && len(magic) == 10 && string(magic[4:]) == "1AY&SY":
		return io.NopCloser(bzip2.NewReader(br)), true, nil
	}
	for name, s := range otherPackers {
		if starts(s) {
			return nil, false, fmt.Errorf("%w: it is packed by %s; unpack it first, or pack it by gzip, zstd, xz or bzip2",
				ErrUnsupported, name)
		}
	}
	return io.NopCloser(br), false, nil
}

// isZstd recognises frames, and skippable frames, which may come first.
func isZstd(m []byte) bool {
	return len(m) >= 4 && (m[0] == 0x28 && m[1] == 0xb5 && m[2] == 0x2f && m[3] == 0xfd ||
		m[0]&0xf0 == 0x50 && m[1] == 0x2a && m[2] == 0x4d && m[3] == 0x18)
}
