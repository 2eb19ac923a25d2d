package store

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/layerdir"
)

const hashBlock = 64 << 10

// hashLayer returns the digest of a layer.
func hashLayer(ctx context.Context, f Format, path string) (string, error) {
	if f.File == layerdir.Tree {
		return hashTree(ctx, path)
	}
	return hashFile(ctx, path)
}

// hashFile returns the digest of a file's blocks that are not zero, each with its place, and of its size:
// holes cost nothing, and a copy without holes has the same digest.
func hashFile(ctx context.Context, path string) (digest string, err error) {
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
			h.Write(b)
		}
		off += int64(n)
	}
	binary.BigEndian.PutUint64(place[:], uint64(size))
	h.Write(place[:])
	return fmt.Sprintf("%s%x", digestPrefix, h.Sum(nil)), nil
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
