package ext4

import (
	"encoding/binary"
	"math"

	"github.com/stratavm/strata/internal/format/layertree"
)

var le = binary.LittleEndian

const (
	fastSymlink = 59 // a target as long as this lies in the inode
	extraSize   = 32 // bytes of the inode that are in use after the first 128
	maxDirLinks = 64999

	flagExtents = 0x80000

	extentMagic    = 0xf30a
	extentsInInode = 4
	extentsInBlock = (blockSize - 12) / 12
	maxExtent      = 32768 // blocks
)

var fileTypes = map[uint32]byte{
	layertree.TypeRegular: 1, layertree.TypeDir: 2, layertree.TypeChar: 3, layertree.TypeBlock: 4,
	layertree.TypeFifo: 5, layertree.TypeSocket: 6, layertree.TypeSymlink: 7,
}

// encode writes the inode to b, which is inodeSize zero bytes.
func (in *inode) encode(b []byte) {
	n := in.node
	links, size, blocks, flags := n.Nlink, n.Size, uint64(in.blocks), uint32(0)
	iblock := b[40:100]
	switch n.Type() {
	case layertree.TypeDir:
		if links > maxDirLinks {
			links = 1 // dir_nlink: the count is unknown
		}
		size = int64(in.blocks) * blockSize
		root, _ := extentTree([]layertree.Run{{Start: in.meta, Blocks: in.blocks}}, 0)
		copy(iblock, root)
		flags = flagExtents
	case layertree.TypeRegular:
		root, _ := extentTree(n.Runs, in.meta)
		copy(iblock, root)
		for _, r := range n.Runs {
			blocks += uint64(r.Blocks)
		}
		flags = flagExtents
	case layertree.TypeSymlink:
		size = int64(len(n.Target))
		if len(n.Target) <= fastSymlink {
			copy(iblock, n.Target)
			break
		}
		root, _ := extentTree([]layertree.Run{{Start: in.meta, Blocks: 1}}, 0)
		copy(iblock, root)
		flags = flagExtents
	case layertree.TypeChar, layertree.TypeBlock:
		le.PutUint32(iblock[4:], n.Minor&0xff|n.Major<<8|(n.Minor&^0xff)<<12)
	}
	if in.xattrs != 0 {
		blocks++
	}
	le.PutUint16(b[0:], uint16(n.Mode))
	le.PutUint16(b[2:], uint16(n.UID))
	le.PutUint32(b[4:], uint32(size))
	sec, extra := encodeTime(n.Sec, n.Nsec)
	for _, at := range [...]int{8, 12, 16, 144} { // access, change, modification, creation
		le.PutUint32(b[at:], sec)
	}
	for _, at := range [...]int{132, 136, 140, 148} {
		le.PutUint32(b[at:], extra)
	}
	le.PutUint16(b[24:], uint16(n.GID))
	le.PutUint16(b[26:], uint16(links))
	sectors := blocks * (blockSize / 512)
	le.PutUint32(b[28:], uint32(sectors))
	le.PutUint16(b[116:], uint16(sectors>>32))
	le.PutUint32(b[32:], flags)
	le.PutUint32(b[104:], in.xattrs)
	le.PutUint32(b[108:], uint32(size>>32))
	le.PutUint16(b[120:], uint16(n.UID>>16))
	le.PutUint16(b[122:], uint16(n.GID>>16))
	le.PutUint16(b[128:], extraSize)
	// Errors were found when the attribute block was written.
	inside, _, _ := encodeXattrs(n.Xattrs)
	copy(b[128+extraSize:], inside)
}

// encodeTime returns the two words of a time: 34 bits of seconds from -2^31 on, and 30 of nanoseconds. Times out of
// range are clamped.
func encodeTime(sec int64, nsec uint32) (low, extra uint32) {
	if sec < layertree.MinSec {
		sec, nsec = layertree.MinSec, 0
	} else if sec > layertree.MaxSec {
		sec, nsec = layertree.MaxSec, 0
	}
	epoch := uint32((sec-int64(int32(sec)))>>32) & 3
	return uint32(sec), nsec<<2 | epoch
}

// extentTree maps runs: it returns the 60 bytes in the inode, and the blocks of the tree when there are
// more extents than these hold, which then begin at block first.
func extentTree(runs []layertree.Run, first uint32) (root, blocks []byte) {
	var level []byte // entries of 12 bytes each
	for _, r := range runs {
		for done := uint32(0); done < r.Blocks; {
			n := min(r.Blocks-done, maxExtent)
			level = le.AppendUint32(level, r.File+done)
			level = le.AppendUint16(level, uint16(n))
			level = le.AppendUint16(level, 0)
			level = le.AppendUint32(level, r.Start+done)
			done += n
		}
	}
	depth := uint16(0)
	for ; len(level)/12 > extentsInInode; depth++ {
		var above []byte
		for len(level) > 0 {
			n := min(len(level)/12, extentsInBlock)
			b := make([]byte, blockSize)
			putExtentHeader(b, n, extentsInBlock, depth)
			copy(b[12:], level[:n*12])
			above = le.AppendUint32(above, le.Uint32(level))
			above = le.AppendUint32(above, first+uint32(len(blocks)/blockSize))
			above = le.AppendUint32(above, 0)
			blocks = append(blocks, b...)
			level = level[n*12:]
		}
		level = above
	}
	root = make([]byte, 60)
	putExtentHeader(root, len(level)/12, extentsInInode, depth)
	copy(root[12:], level)
	return root, blocks
}

func putExtentHeader(b []byte, entries, limit int, depth uint16) {
	le.PutUint16(b, extentMagic)
	le.PutUint16(b[2:], uint16(entries))
	le.PutUint16(b[4:], uint16(limit))
	le.PutUint16(b[6:], depth)
}

// dirWriter creates the blocks of a directory.
type dirWriter struct {
	b    []byte
	last int // offset of the last entry of the current block
	at   int // where the next one goes
}

func newDirWriter(self, parent uint32) *dirWriter {
	w := &dirWriter{b: make([]byte, blockSize)}
	w.add(self, layertree.TypeDir, ".")
	w.add(parent, layertree.TypeDir, "..")
	return w
}

func (w *dirWriter) add(ino, typ uint32, name string) {
	size := (8 + len(name) + 3) &^ 3
	end := (w.at/blockSize + 1) * blockSize
	if w.at == len(w.b) || w.at+size > end {
		w.close()
		w.at = len(w.b)
		w.b = append(w.b, make([]byte, blockSize)...)
	}
	e := w.b[w.at:]
	le.PutUint32(e, ino)
	le.PutUint16(e[4:], uint16(size))
	e[6] = byte(len(name))
	e[7] = fileTypes[typ]
	copy(e[8:], name)
	w.last = w.at
	w.at += size
}

// close makes the last entry reach to the end of its block.
func (w *dirWriter) close() {
	le.PutUint16(w.b[w.last+4:], uint16(len(w.b)-w.last))
}

func (w *dirWriter) finish() []byte {
	w.close()
	return w.b
}

// maxInodes is the maximum number of inodes.
const maxInodes = math.MaxUint32 - blocksPerGroup
