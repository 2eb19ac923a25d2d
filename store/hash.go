package store

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"hash/crc32"
	"io"
	"strings"

	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/layerdir"
)

const hashBlock = 64 << 10

// sumsPrefix is the prefix of digests of sumFile. Records of earlier versions only have digests of hashFile.
const sumsPrefix = "crc32:"

// hashLayer returns the digest of a layer in format f.
func hashLayer(ctx context.Context, f Format, path string) (string, error) {
	if f.File == layerdir.Tree {
		return hashTree(ctx, path)
	}
	return sumFile(ctx, path)
}

// checkFile reports whether a layer, or a file next to it, has the digest want, of either kind.
func checkFile(ctx context.Context, f Format, path, want string) (same bool, err error) {
	var got string
	if f.File == layerdir.Tree || strings.HasPrefix(want, sumsPrefix) {
		got, err = hashLayer(ctx, f, path)
	} else {
		got, err = hashFile(ctx, path)
	}
	return got == want, err
}

// sumFile returns a digest that detects accidental damage and is faster than hashFile: a hash of two CRCs of different
// polynomials per block. It does not detect forgery, but a forger could as well change the record next to the file.
func sumFile(ctx context.Context, path string) (string, error) {
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	sum, err := digestFile(ctx, path, func(h hash.Hash, block []byte) {
		var sums [8]byte
		binary.BigEndian.PutUint32(sums[:], crc32.Checksum(block, castagnoli))
		binary.BigEndian.PutUint32(sums[4:], crc32.ChecksumIEEE(block))
		h.Write(sums[:])
	})
	return sumsPrefix + sum, err
}

// hashFile returns a cryptographic digest.
func hashFile(ctx context.Context, path string) (string, error) {
	sum, err := digestFile(ctx, path, func(h hash.Hash, block []byte) { h.Write(block) })
	return digestPrefix + sum, err
}

// digestFile returns a digest of the size of a file and of its non-zero blocks with their offsets: holes are not read,
// and a copy without holes has the same digest.
func digestFile(ctx context.Context, path string, add func(hash.Hash, []byte)) (digest string, err error) {
	f, size, err := regfile.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	var place [8]byte
	buf := make([]byte, min(16*hashBlock, size))
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return "", context.Cause(ctx)
		}
		if off = nextData(f, off) / hashBlock * hashBlock; off >= size {
			break
		}
		n, err := f.ReadAt(buf, off)
		if err != nil && !(errors.Is(err, io.EOF) && off+int64(n) == size) {
			return "", err
		}
		for i := 0; i < n; i += hashBlock {
			b := buf[i:min(i+hashBlock, n)]
			if zero(b) {
				continue
			}
			binary.BigEndian.PutUint64(place[:], uint64(off)+uint64(i))
			h.Write(place[:])
			add(h, b)
		}
		off += int64(n)
	}
	binary.BigEndian.PutUint64(place[:], uint64(size))
	h.Write(place[:])
	return hex.EncodeToString(h.Sum(nil)), nil
}

func zero(b []byte) bool {
	for len(b) >= 8 {
		if binary.NativeEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
