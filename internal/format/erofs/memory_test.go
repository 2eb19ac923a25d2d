package erofs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"testing"

	"github.com/stratavm/strata/internal/format/erofs"
	"github.com/stratavm/strata/internal/format/layertree"
)

// hostile is an EROFS image made by hand: block 0 holds the super block, block 1 the root directory, and all
// from block 2 on are inodes of 64 bytes and what is put among them.
type hostile []byte

var le = binary.LittleEndian

const block = layertree.BlockSize

func newHostile(blocks int) hostile {
	b := make(hostile, blocks*block)
	s := b[1024:]
	le.PutUint32(s, 0xe0f5e1e2)
	s[12] = 12
	le.PutUint32(s[36:], uint32(blocks))
	le.PutUint32(s[40:], 2) // metadata
	le.PutUint32(s[80:], 4) // chunks are allowed
	return b
}

// inode puts an inode at byte at of the metadata.
func (b hostile) inode(at int, mode, layout uint16, size uint64, value uint32, xattrs uint16) {
	i := b[2*block+at:]
	le.PutUint16(i, layout<<1|1)
	le.PutUint16(i[2:], xattrs)
	le.PutUint16(i[4:], mode)
	le.PutUint64(i[8:], size)
	le.PutUint32(i[16:], value)
	le.PutUint32(i[44:], 1)
}

// dir fills a block with the entries of a directory that count from a number on and returns its size.
func (b hostile) dir(at, count int, nid func(i int) int) uint64 {
	d := b[at*block:][:block]
	name := 12 * count
	for i := range count {
		le.PutUint64(d[12*i:], uint64(nid(i)))
		le.PutUint16(d[12*i+8:], uint16(name))
		name += copy(d[name:], fmt.Sprintf("%04x", i))
	}
	return uint64(name)
}

const perDir = block / 16 // entries of a directory of one block whose names have 4 bytes

// TestMemoryIsInProportion: images whose files claim what lies in other files' metadata take no more memory
// than their size can hold.
func TestMemoryIsInProportion(t *testing.T) {
	const files, blocks = perDir, 64
	images := map[string]hostile{}

	// Each file has all of the image behind the inodes as its map of chunks: one attribute of a name space that
	// nobody knows reaches from the inode to there.
	b := newHostile(blocks)
	const stride, inodesEnd = 96, files * 96
	for at := inodesEnd; at < (blocks-2)*block; at += 8 {
		le.PutUint32(b[2*block+at:], 7) // no two chunks are neighbours
	}
	b.inode(0, 0o40755, 0, b.dir(1, files-1, func(i int) int { return stride / 32 * (i + 1) }), 1, 0)
	for i := 1; i < files; i++ {
		length := inodesEnd - i*stride - 64
		b.inode(i*stride, 0o100644, 4, ((blocks-2)*block-inodesEnd)/4*block, 0, uint16((length-12)/4+1))
		x := b[2*block+i*stride+64+12:]
		x[1] = 99
		le.PutUint16(x[2:], uint16(length-16))
	}
	images["maps of chunks"] = b

	// Each directory has the same contents.
	b = newHostile(blocks)
	size := b.dir(1, files-1, func(i int) int { return 2 * (i + 1) })
	b.inode(0, 0o40755, 0, size, 1, 0)
	for i := range files - 1 {
		b.inode(64*(i+1), 0o40755, 0, b.dir(63, files-1, func(int) int { return 2 * files }), 63, 0)
	}
	b.inode(64*files, 0o100644, 0, 0, 0, 0)
	images["contents of directories"] = b

	// Each file has other long attributes that lie over one another.
	b = newHostile(blocks)
	const shared = 200
	le.PutUint32(b[1024+44:], 20) // first block of shared attributes
	for i := range 43 * block / 4 {
		copy(b[20*block+4*i:], []byte{3, 1, 0xf0, 0xff}) // three letters of user., a value of 65520 bytes
	}
	each := (64 + 12 + 4*shared + 31) / 32
	inodes := (18 * block) / (each * 32)
	b.inode(0, 0o40755, 0, b.dir(1, inodes-1, func(i int) int { return (i + 1) * each }), 1, 0)
	for i := 1; i < inodes; i++ {
		at := i * each * 32
		b.inode(at, 0o100644, 0, 0, 0, 1+shared)
		x := b[2*block+at+64:]
		x[4] = shared
		for k := range shared {
			le.PutUint32(x[12+4*k:], uint32((i*shared+k)%(26*block/4)))
		}
	}
	images["shared attributes"] = b

	for name, b := range images {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			_, err := erofs.Open(bytes.NewReader(b), int64(len(b)))
			runtime.ReadMemStats(&after)
			if !errors.Is(err, erofs.ErrCorrupt) {
				t.Errorf("got %v, want %v", err, erofs.ErrCorrupt)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > uint64(50*len(b)) {
				t.Errorf("%d KiB were allocated for an image of %d KiB", used>>10, len(b)>>10)
			}
		})
	}
}
