package ext4

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"

	"github.com/stratavm/strata/internal/format/layertree"
)

const (
	blockSize      = layertree.BlockSize
	blocksPerGroup = blockSize * 8
	inodeSize      = 256
	inodesPerBlock = blockSize / inodeSize
	descSize       = 32
	descsPerBlock  = blockSize / descSize
	maxPerGroup    = blockSize * 8 // inodes; limited by the size of a bitmap

	rootInode      = 2
	firstFreeInode = 11
	lostFound      = "lost+found"
	writeBuffer    = 1 << 20

	maxFileLinks = 65000
)

// ErrTooLarge: the layer exceeds a limit of the file system.
var ErrTooLarge = errors.New("the layer does not fit in an ext4 image")

// Info reports what WriteLayer wrote.
type Info struct {
	Bytes  int64 // size of the image, a multiple of 4096
	Inodes int   // files of all types, hard links counted once
	UUID   [16]byte
}

// WriteLayer reads a layer tar from r to EOF, and writes it to w as an ext4 file system at offset 0. w must be empty:
// holes are skipped, not written. See package layertree for the interpretation of the tar and the limits in o. ctx is
// checked while the tar is read.
func WriteLayer(ctx context.Context, w io.WriteSeeker, r io.Reader, o layertree.Options) (Info, error) {
	limit := o.MaxBytes
	if limit == 0 {
		limit = layertree.DefaultMaxBytes
	}
	im := &image{out: w, bw: bufio.NewWriterSize(w, writeBuffer), sum: sha256.New()}
	// Descriptors for twice the limit on contents leave ample room for metadata.
	maxGroups := limit/(blocksPerGroup*blockSize)*2 + 2
	im.descBlocks = uint32(min((maxGroups+descsPerBlock-1)/descsPerBlock, 1024))
	im.next = 1 + im.descBlocks
	im.data = im.next
	if _, err := w.Seek(int64(im.next)*blockSize, io.SeekStart); err != nil {
		return Info{}, fmt.Errorf("ext4: %w", err)
	}
	tree, err := layertree.FromTar(ctx, r, im.bw, im.next, o)
	if err != nil {
		return Info{}, err
	}
	im.tree, im.next, im.dataEnd = tree, tree.NextBlock, tree.NextBlock
	info, err := im.finish()
	if err != nil {
		return Info{}, fmt.Errorf("ext4: %w", err)
	}
	return info, nil
}

// inode is a file that has a number. Its place in the table follows from its index in image.inodes.
type inode struct {
	node   *layertree.Node
	xattrs uint32 // block of the attributes that do not fit in the inode, or 0
	meta   uint32 // first block of a directory, a long symbolic link or an extent tree
	blocks uint32 // how many these are
}

type image struct {
	out        io.WriteSeeker
	bw         *bufio.Writer
	sum        hash.Hash
	tree       *layertree.Tree
	next       uint32 // block that is written next
	descBlocks uint32
	data       uint32 // first block of contents
	dataEnd    uint32
	inodes     []inode // of numbers from firstFreeInode on; the root is separate
	root       inode
	numbers    map[*layertree.Node]uint32
}

// append writes whole blocks of metadata and returns the number of the first.
func (im *image) append(b []byte) (uint32, error) {
	first := im.next
	n := uint32(len(b) / blockSize)
	if uint64(first)+uint64(n) > math.MaxUint32-blocksPerGroup {
		return 0, fmt.Errorf("more than 16 TiB: %w", ErrTooLarge)
	}
	im.sum.Write(b)
	if _, err := im.bw.Write(b); err != nil {
		return 0, err
	}
	im.next += n
	return first, nil
}

// finish writes all metadata.
func (im *image) finish() (Info, error) {
	if err := im.number(); err != nil {
		return Info{}, err
	}
	g, err := im.plan()
	if err != nil {
		return Info{}, err
	}
	if err := im.writeInodes(g); err != nil {
		return Info{}, err
	}
	descs, free, err := im.writeBitmaps(g)
	if err != nil {
		return Info{}, err
	}
	if err := im.pad(g.end); err != nil {
		return Info{}, err
	}
	info := Info{Bytes: int64(g.end) * blockSize, Inodes: len(im.numbers)}
	copy(info.UUID[:], im.sum.Sum(nil))
	info.UUID[6] = info.UUID[6]&0x0f | 0x80 // version 8: custom
	info.UUID[8] = info.UUID[8]&0x3f | 0x80
	if err := im.bw.Flush(); err != nil {
		return Info{}, err
	}
	if _, err := im.out.Seek(0, io.SeekStart); err != nil {
		return Info{}, err
	}
	head := append(superBlock(g, free, len(im.numbers), info.UUID), descs...)
	if _, err := im.out.Write(head); err != nil {
		return Info{}, err
	}
	_, err = im.out.Seek(info.Bytes, io.SeekStart)
	return info, err
}

// pad extends the image to block end.
func (im *image) pad(end uint32) error {
	if im.next == end {
		return nil
	}
	if err := im.bw.Flush(); err != nil {
		return err
	}
	if _, err := im.out.Seek(int64(end-im.next-1)*blockSize, io.SeekCurrent); err != nil {
		return err
	}
	im.next = end
	_, err := im.bw.Write(make([]byte, blockSize))
	return err
}

// number assigns inode numbers and writes directories in one walk: a directory is written when its entries have their
// numbers.
func (im *image) number() error {
	im.numbers = map[*layertree.Node]uint32{im.tree.Root: rootInode}
	root := im.tree.Root
	switch lf := root.Child(lostFound); {
	case lf == nil:
		lf = layertree.NewDir(0o700)
		lf.Sec, lf.Nsec = root.Sec, root.Nsec
		root.SetChild(lostFound, lf)
	case !lf.IsDir():
		return fmt.Errorf("/%s is no directory, as ext4 needs it to be: choose the EROFS format", lostFound)
	}
	// lost+found has the first number, by convention.
	if _, err := im.add(root.Child(lostFound), "/"+lostFound); err != nil {
		return err
	}
	im.root.node = root
	if err := im.place(&im.root, "/"); err != nil {
		return err
	}
	type item struct {
		path        string
		node        *layertree.Node
		ino, parent uint32
	}
	stack := []item{{"/", root, rootInode, rootInode}}
	for len(stack) > 0 {
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		w := newDirWriter(dir.ino, dir.parent)
		for _, name := range dir.node.Names() {
			child := dir.node.Child(name)
			path := dir.path + name
			ino, known := im.numbers[child]
			if !known {
				var err error
				if ino, err = im.add(child, path); err != nil {
					return err
				}
			}
			w.add(ino, child.Type(), name)
			if child.IsDir() {
				stack = append(stack, item{path + "/", child, ino, dir.ino})
			}
		}
		b := w.finish()
		first, err := im.append(b)
		if err != nil {
			return err
		}
		in := &im.root
		if dir.ino != rootInode {
			in = &im.inodes[dir.ino-firstFreeInode]
		}
		in.meta, in.blocks = first, uint32(len(b)/blockSize)
	}
	return nil
}

// add assigns a file the next inode number and writes its blocks outside the inode.
func (im *image) add(n *layertree.Node, path string) (uint32, error) {
	ino := uint32(firstFreeInode + len(im.inodes))
	if !n.IsDir() && n.Nlink > maxFileLinks {
		return 0, fmt.Errorf("%s: %d hard links; ext4 can have %d: choose the EROFS format", path, n.Nlink, maxFileLinks)
	}
	in := inode{node: n}
	if err := im.place(&in, path); err != nil {
		return 0, err
	}
	im.inodes = append(im.inodes, in)
	im.numbers[n] = ino
	return ino, nil
}

// place writes the blocks of attributes, extents and long symbolic links.
func (im *image) place(in *inode, path string) error {
	_, block, err := encodeXattrs(in.node.Xattrs)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if block != nil {
		if in.xattrs, err = im.append(block); err != nil {
			return err
		}
	}
	var meta []byte
	switch in.node.Type() {
	case layertree.TypeRegular:
		_, meta = extentTree(in.node.Runs, im.next)
	case layertree.TypeSymlink:
		if len(in.node.Target) > fastSymlink {
			meta = make([]byte, blockSize)
			copy(meta, in.node.Target)
		}
	}
	if meta != nil {
		if in.meta, err = im.append(meta); err != nil {
			return err
		}
		in.blocks = uint32(len(meta) / blockSize)
	}
	return nil
}
