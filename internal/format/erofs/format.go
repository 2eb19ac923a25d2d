package erofs

import (
	"encoding/binary"
	"hash/crc32"
	"strings"

	"github.com/stratavm/strata/internal/format/layertree"
)

var le = binary.LittleEndian

const (
	blockSize   = layertree.BlockSize
	blockBits   = 12
	superOffset = 1024
	superSize   = 128
	magic       = 0xe0f5e1e2

	compatChecksum = 0x1
	compatMtime    = 0x2

	incompatChunked     = 0x4
	incompatDeviceTable = 0x8

	inodeUnit     = 32 // a nid counts these from the first block of metadata on
	compactSize   = 32
	extendedSize  = 64
	xattrHeader   = 12
	direntSize    = 12
	chunkIndexes  = 0x20
	chunkBitsMask = 0x1f
	chunkKnown    = chunkBitsMask | chunkIndexes
	nullBlock     = 0xffffffff
)

// Layouts of contents.
const (
	layoutPlain   = 0
	layoutInline  = 2
	layoutChunked = 4
)

var fileTypes = map[uint32]byte{
	layertree.TypeRegular: 1, layertree.TypeDir: 2, layertree.TypeChar: 3, layertree.TypeBlock: 4,
	layertree.TypeFifo: 5, layertree.TypeSocket: 6, layertree.TypeSymlink: 7,
}

// xattrPrefixes are the prefixes of attribute names with their numbers. The ACLs are first, because they are whole
// names.
var xattrPrefixes = [...]struct {
	prefix string
	index  byte
}{
	{layertree.AccessACL, 2}, {layertree.DefaultACL, 3},
	{"user.", 1}, {"trusted.", 4}, {"security.", 6},
}

func compressName(name string) (index byte, rest string, ok bool) {
	for _, p := range xattrPrefixes {
		if rest, found := strings.CutPrefix(name, p.prefix); found {
			if p.index == 2 || p.index == 3 {
				if rest != "" {
					continue
				}
			}
			return p.index, rest, true
		}
	}
	return 0, name, false
}

func expandName(index byte, rest string) (string, bool) {
	for _, p := range xattrPrefixes {
		if p.index == index {
			return p.prefix + rest, true
		}
	}
	return "", false
}

// checksum is the CRC-32C of block 0 from the super block on, with the checksum field zero, not
// inverted at the end.
func checksum(block []byte) uint32 {
	b := append([]byte(nil), block[superOffset:]...)
	clear(b[4:8])
	return ^crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
}

// encodeDev is the form of device numbers that Linux uses on disks.
func encodeDev(major, minor uint32) uint32 { return minor&0xff | major<<8 | (minor&^0xff)<<12 }

func decodeDev(d uint32) (major, minor uint32) { return d >> 8 & 0xfff, d&0xff | d>>12&^0xff }

func align(n, to int64) int64 { return (n + to - 1) / to * to }
