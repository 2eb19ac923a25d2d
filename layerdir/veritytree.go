package layerdir

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/stratavm/strata/internal/format/verity"
	"github.com/stratavm/strata/internal/regfile"
)

// Offsets in images, in bytes, and magic numbers.
const (
	superBlockAt = 1024 // in ext4 and EROFS
	superBlocks  = superBlockAt + 1024

	ext4Magic  = 0xef53
	erofsMagic = 0xe0f5e1e2
	ext4Wide   = 0x80 // the incompatible feature "64bit"
)

// VerityInImage reads the parameters of the hash tree that follows the file system in an image, as other tools append
// it without a record. If there is no hash tree or no image, the error matches fs.ErrNotExist. The digest is only as
// trustworthy as the image: the tree detects damage, but not forgery.
func VerityInImage(image string) (verity.Info, error) {
	f, _, err := regfile.Open(image)
	if err != nil {
		return verity.Info{}, fmt.Errorf("look for a hash tree: %w", err)
	}
	defer f.Close()
	head := make([]byte, superBlocks)
	if n, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return verity.Info{}, fmt.Errorf("look for a hash tree: %w", err)
	} else if n < len(head) {
		return verity.Info{}, fmt.Errorf("a hash tree in %s: %w", image, fs.ErrNotExist)
	}
	size := fileSystemSize(head[superBlockAt:])
	if size <= 0 || !verity.Begins(f, size) {
		return verity.Info{}, fmt.Errorf("a hash tree in %s: %w", image, fs.ErrNotExist)
	}
	info, err := verity.Read(f, size)
	if err != nil {
		return verity.Info{}, fmt.Errorf("%s: invalid hash tree: %w", image, err)
	}
	stat, err := f.Stat()
	if err != nil {
		return verity.Info{}, err
	}
	if end := info.DataBytes + info.TreeBytes; end > stat.Size() {
		return verity.Info{}, fmt.Errorf("%s: the hash tree ends at byte %d, but the file has %d bytes (truncated?)",
			image, end, stat.Size())
	}
	return info, nil
}

// fileSystemSize returns the size in bytes according to an ext4 or EROFS super block, or 0 for anything else.
func fileSystemSize(b []byte) int64 {
	le := binary.LittleEndian
	const maxBits, maxBlocks = 16, 1 << 40 // their product does not overflow
	var blocks uint64
	var bits uint32
	switch {
	case le.Uint32(b) == erofsMagic:
		blocks, bits = uint64(le.Uint32(b[36:])), uint32(b[12])
	case le.Uint16(b[56:]) == ext4Magic:
		blocks, bits = uint64(le.Uint32(b[4:])), 10+min(le.Uint32(b[24:]), maxBits)
		if le.Uint32(b[96:])&ext4Wide != 0 {
			blocks |= uint64(le.Uint32(b[336:])) << 32
		}
	}
	if bits > maxBits || blocks > maxBlocks {
		return 0
	}
	return int64(blocks << bits)
}
