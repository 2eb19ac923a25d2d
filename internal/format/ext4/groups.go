package ext4

import (
	"fmt"

	"github.com/stratavm/strata/internal/format/layertree"
)

// groups is the layout of the block groups.
type groups struct {
	count          uint32
	blocksPerGroup uint32 // fewer than possible when there are many small files
	inodesPerGroup uint32
	tables         uint32 // first block of the inode tables, which follow one another
	bitmaps        uint32 // first of the bitmaps: block and inode bitmap of each group in turn
	end            uint32 // number of blocks of the image
	descBlocks     uint32 // blocks that hold descriptors
}

// plan finds the number of groups iteratively: it depends on the size of the image, which includes the tables and
// bitmaps of the groups.
func (im *image) plan() (groups, error) {
	inodes := uint64(firstFreeInode - 1 + len(im.inodes))
	if inodes > maxInodes {
		return groups{}, fmt.Errorf("%d files: %w", inodes, ErrTooLarge)
	}
	for count := max(uint64(1), (inodes+maxPerGroup-1)/maxPerGroup); ; count++ {
		perGroup := (inodes + count - 1) / count
		perGroup = (perGroup + inodesPerBlock - 1) / inodesPerBlock * inodesPerBlock
		tables := uint64(im.next)
		bitmaps := tables + count*perGroup/inodesPerBlock
		end := bitmaps + 2*count
		if end > count*blocksPerGroup {
			// One more group adds little: continue with the number that the size requires.
			count = max(count, end/blocksPerGroup)
			continue
		}
		// The number of inodes per group is limited. If more groups are needed for inodes than for blocks, make them
		// smaller instead of adding unused blocks.
		perGroupBlocks := uint64(blocksPerGroup)
		if count > 1 {
			perGroupBlocks = min(((end+count-1)/count+7)/8*8, blocksPerGroup)
		}
		end = max(end, (count-1)*perGroupBlocks+1)
		used := (count + descsPerBlock - 1) / descsPerBlock
		if used > uint64(im.descBlocks) {
			return groups{}, fmt.Errorf("%d blocks of 4 KiB: %w", end, ErrTooLarge)
		}
		return groups{count: uint32(count), blocksPerGroup: uint32(perGroupBlocks), inodesPerGroup: uint32(perGroup),
			tables: uint32(tables), bitmaps: uint32(bitmaps), end: uint32(end), descBlocks: uint32(used)}, nil
	}
}

// writeInodes writes the inode tables of all groups.
func (im *image) writeInodes(g groups) error {
	block := make([]byte, blockSize)
	total := g.count * g.inodesPerGroup
	for first := uint32(1); first <= total; first += inodesPerBlock {
		clear(block)
		for i := range uint32(inodesPerBlock) {
			if in := im.inode(first + i); in != nil {
				in.encode(block[i*inodeSize:][:inodeSize])
			}
		}
		if _, err := im.append(block); err != nil {
			return err
		}
	}
	return nil
}

func (im *image) inode(number uint32) *inode {
	switch {
	case number == rootInode:
		return &im.root
	case number < firstFreeInode || int(number-firstFreeInode) >= len(im.inodes):
		return nil
	}
	return &im.inodes[number-firstFreeInode]
}

type bitmap []byte

func (m bitmap) set(i uint32)      { m[i/8] |= 1 << (i % 8) }
func (m bitmap) has(i uint32) bool { return m[i/8]&(1<<(i%8)) != 0 }

func (m bitmap) setRange(from, to uint32) {
	for ; from < to && from%8 != 0; from++ {
		m.set(from)
	}
	for ; from+8 <= to; from += 8 {
		m[from/8] = 0xff
	}
	for ; from < to; from++ {
		m.set(from)
	}
}

// usedBlocks returns the bitmap of blocks in use: all but reserved descriptor blocks, and contents of entries that a
// later entry has replaced.
func (im *image) usedBlocks(g groups) bitmap {
	used := make(bitmap, int(g.count)*blockSize)
	used.setRange(0, 1+g.descBlocks)
	used.setRange(im.dataEnd, g.bitmaps+2*g.count)
	for i := range im.inodes {
		for _, r := range im.inodes[i].node.Runs {
			used.setRange(r.Start, r.Start+r.Blocks)
		}
	}
	return used
}

// writeBitmaps writes the bitmaps and returns the descriptors, and how many blocks are free.
func (im *image) writeBitmaps(g groups) (descs []byte, free uint32, err error) {
	used := im.usedBlocks(g)
	descs = make([]byte, g.descBlocks*blockSize)
	for i := range g.count {
		first := i * g.blocksPerGroup
		inGroup := min(g.end-first, g.blocksPerGroup)
		blocks := make(bitmap, blockSize)
		copy(blocks, used[first/8:][:g.blocksPerGroup/8])
		freeBlocks := uint32(0)
		for b := range inGroup {
			if !blocks.has(b) {
				freeBlocks++
			}
		}
		blocks.setRange(inGroup, blocksPerGroup) // beyond the end of the image

		inodes := make(bitmap, blockSize)
		var usedInodes, dirs uint32
		for n := range g.inodesPerGroup {
			number := i*g.inodesPerGroup + n + 1
			in := im.inode(number)
			if in == nil && number >= firstFreeInode {
				continue
			}
			inodes.set(n)
			usedInodes++
			if in != nil && in.node.Type() == layertree.TypeDir {
				dirs++
			}
		}
		inodes.setRange(g.inodesPerGroup, maxPerGroup)

		if _, err := im.append(blocks); err != nil {
			return nil, 0, err
		}
		if _, err := im.append(inodes); err != nil {
			return nil, 0, err
		}
		d := descs[i*descSize:]
		le.PutUint32(d, g.bitmaps+2*i)
		le.PutUint32(d[4:], g.bitmaps+2*i+1)
		le.PutUint32(d[8:], g.tables+i*g.inodesPerGroup/inodesPerBlock)
		le.PutUint16(d[12:], uint16(freeBlocks))
		le.PutUint16(d[14:], uint16(g.inodesPerGroup-usedInodes))
		le.PutUint16(d[16:], uint16(dirs))
		free += freeBlocks
	}
	return descs, free, nil
}

// Features of the image.
const (
	compatExtAttr      = 0x8
	compatSparseSuper2 = 0x200

	incompatFileType = 0x2
	incompatExtents  = 0x40
	incompatFlexBG   = 0x200

	roLargeFile  = 0x2
	roHugeFile   = 0x8
	roDirNlink   = 0x20
	roExtraIsize = 0x40
	roReadOnly   = 0x1000
)

// superBlock returns block 0, with the super block at offset 1024.
func superBlock(g groups, freeBlocks uint32, files int, uuid [16]byte) []byte {
	block := make([]byte, blockSize)
	b := block[1024:]
	inodes := g.count * g.inodesPerGroup
	// Of the reserved numbers below firstFreeInode only the root's is among the files.
	usedInodes := uint32(files) - 1 + firstFreeInode - 1
	for at, v := range map[int]uint32{
		0: inodes, 4: g.end, 12: freeBlocks, 16: inodes - usedInodes,
		24: 2, 28: 2, // block and cluster size: 1024 << 2
		32: g.blocksPerGroup, 36: g.blocksPerGroup, 40: g.inodesPerGroup,
		76:  1, // revision with dynamic inode sizes
		84:  firstFreeInode,
		92:  compatExtAttr | compatSparseSuper2,
		96:  incompatFileType | incompatExtents | incompatFlexBG,
		100: roLargeFile | roHugeFile | roDirNlink | roExtraIsize | roReadOnly,
		616: firstFreeInode, // lost+found
	} {
		le.PutUint32(b[at:], v)
	}
	for at, v := range map[int]uint16{
		54: 0xffff,                           // no limit on mounts between checks
		56: 0xef53, 58: 1 /* clean */, 60: 1, /* go on after errors */
		88: inodeSize, 348: extraSize, 350: extraSize,
	} {
		le.PutUint16(b[at:], v)
	}
	copy(b[104:], uuid[:])
	b[372] = 31 // all groups are one flexible group
	return block
}
