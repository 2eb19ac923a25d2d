package erofs

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"math/bits"

	"github.com/stratavm/strata/internal/format/layertree"
)

const writeBuffer = 1 << 20

// ErrTooLarge: the layer exceeds a limit of the file system.
var ErrTooLarge = errors.New("the layer does not fit in an EROFS image")

// Info reports what was written.
type Info struct {
	Bytes  int64 // size of the image, a multiple of 4096
	Inodes int   // files of all types, hard links counted once
	UUID   [16]byte
}

// WriteLayer reads a layer tar from r to EOF, and writes it to w as an EROFS image at offset 0. w must be empty: block
// 0 is written last. See package layertree for the interpretation of the tar and the limits in o. ctx is checked while
// the tar is read.
func WriteLayer(ctx context.Context, w io.WriteSeeker, r io.Reader, o layertree.Options) (Info, error) {
	if _, err := w.Seek(blockSize, io.SeekStart); err != nil {
		return Info{}, fmt.Errorf("erofs: %w", err)
	}
	bw := bufio.NewWriterSize(w, writeBuffer)
	tree, err := layertree.FromTar(ctx, r, bw, 1, o)
	if err != nil {
		return Info{}, err
	}
	if err := markImplied(tree); err != nil {
		return Info{}, fmt.Errorf("erofs: %w", err)
	}
	block0, info, err := writeMetadata(bw, tree, tree.NextBlock)
	if err != nil {
		return Info{}, fmt.Errorf("erofs: %w", err)
	}
	if err := bw.Flush(); err != nil {
		return Info{}, fmt.Errorf("erofs: %w", err)
	}
	if _, err := w.Seek(0, io.SeekStart); err != nil {
		return Info{}, fmt.Errorf("erofs: %w", err)
	}
	if _, err := w.Write(block0); err != nil {
		return Info{}, fmt.Errorf("erofs: %w", err)
	}
	if _, err := w.Seek(info.Bytes, io.SeekStart); err != nil {
		return Info{}, fmt.Errorf("erofs: %w", err)
	}
	return info, nil
}

// inode is the placement of a file in the image.
type inode struct {
	node   *layertree.Node
	names  []string // of a directory, with "." and ".."
	parent *inode
	at     int64  // offset in the metadata
	xattrs int    // bytes
	layout uint16 // of contents
	block  uint32 // first block of contents outside of the inode
	inline int    // bytes of contents after the inode
	chunk  uint   // log2 of blocks per chunk
	chunks int
	tail   []byte // the end of a file that needs a separate block
}

// metadata is the state of writeMetadata.
type metadata struct {
	w      *bufio.Writer
	sum    hash.Hash
	tree   *layertree.Tree
	inodes []*inode
	index  map[*layertree.Node]*inode
	next   uint32 // next block for contents of directories and long links
	size   int64  // of the inode area in bytes
	extra  []*inode
	chunky bool
}

// writeMetadata writes all metadata of tree, the first byte being that of block first, and returns
// block 0.
func writeMetadata(w *bufio.Writer, tree *layertree.Tree, first uint32) ([]byte, Info, error) {
	m := &metadata{w: w, sum: sha256.New(), tree: tree, next: first, index: make(map[*layertree.Node]*inode)}
	if err := m.plan(); err != nil {
		return nil, Info{}, err
	}
	inodeBlocks := align(m.size, blockSize) / blockSize
	if int64(m.next)+inodeBlocks >= math.MaxUint32 {
		return nil, Info{}, fmt.Errorf("more than 16 TiB: %w", ErrTooLarge)
	}
	for _, in := range m.extra {
		if err := m.write(m.outside(in)); err != nil {
			return nil, Info{}, err
		}
	}
	if err := m.writeInodes(); err != nil {
		return nil, Info{}, err
	}
	end := m.next + uint32(inodeBlocks)
	info := Info{Bytes: int64(end) * blockSize, Inodes: len(m.inodes)}
	copy(info.UUID[:], m.sum.Sum(nil))
	info.UUID[6] = info.UUID[6]&0x0f | 0x80 // version 8: custom
	info.UUID[8] = info.UUID[8]&0x3f | 0x80
	return m.superBlock(end, info), info, nil
}

func (m *metadata) write(b []byte) error {
	m.sum.Write(b)
	_, err := m.w.Write(b)
	return err
}

func (m *metadata) superBlock(end uint32, info Info) []byte {
	block := make([]byte, blockSize)
	b := block[superOffset:]
	le.PutUint32(b[0:], magic)
	le.PutUint32(b[8:], compatChecksum|compatMtime)
	b[12] = blockBits
	le.PutUint16(b[14:], uint16(m.index[m.tree.Root].at/inodeUnit))
	le.PutUint64(b[16:], uint64(info.Inodes))
	le.PutUint32(b[36:], end)
	le.PutUint32(b[40:], m.next)
	copy(b[48:], info.UUID[:])
	if m.chunky {
		le.PutUint32(b[80:], incompatChunked)
	}
	le.PutUint32(b[4:], checksum(block))
	return block
}

// plan places all inodes: directories before their entries, entries next to each other.
func (m *metadata) plan() error {
	// Nothing is at offset 0: readers of directories take inode number 0 as "no inode".
	m.size = extendedSize
	add := func(n *layertree.Node, parent *inode, path string) error {
		if m.index[n] != nil {
			return nil
		}
		in := &inode{node: n, parent: parent}
		if parent == nil {
			in.parent = in
		}
		m.index[n] = in
		m.inodes = append(m.inodes, in)
		if err := m.place(in); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	}
	if err := add(m.tree.Root, nil, "/"); err != nil {
		return err
	}
	type item struct {
		in   *inode
		path string
	}
	stack := []item{{m.inodes[0], "/"}}
	for len(stack) > 0 {
		it := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, name := range it.in.names {
			if name == "." || name == ".." {
				continue
			}
			child := it.in.node.Child(name)
			if err := add(child, it.in, it.path+name); err != nil {
				return err
			}
			if child.IsDir() {
				stack = append(stack, item{m.index[child], it.path + name + "/"})
			}
		}
	}
	return nil
}

// place decides the layout of a file and the position of its inode.
func (m *metadata) place(in *inode) error {
	n := in.node
	var err error
	if in.xattrs, err = xattrSize(n.Xattrs); err != nil {
		return err
	}
	head := extendedSize + in.xattrs
	body := head // bytes that belong to the inode
	size := 0
	switch n.Type() {
	case layertree.TypeDir:
		in.names = dirNames(n)
		size = dirSize(in.names)
	case layertree.TypeSymlink:
		size = len(n.Target)
	case layertree.TypeRegular:
		if head+len(n.Tail) > blockSize {
			// The inode was smaller in the image that this file comes from.
			in.tail, n.Tail = n.Tail, nil
			n.Runs = append(n.Runs, layertree.Run{File: uint32(n.Size / blockSize), Start: m.next, Blocks: 1})
			m.next++
			m.extra = append(m.extra, in)
		}
		m.placeFile(in)
		if in.layout == layoutChunked {
			body = int(align(int64(head), 4)) + 4*in.chunks
		} else if in.layout == layoutInline {
			in.inline = len(n.Tail)
		}
	}
	if size > 0 {
		in.inline = size % blockSize
		in.layout = layoutInline
		if in.inline == 0 || head+in.inline > blockSize {
			in.inline, in.layout = 0, layoutPlain
		}
		if blocks := (size - in.inline + blockSize - 1) / blockSize; blocks > 0 {
			in.block = m.next
			if uint64(m.next)+uint64(blocks) >= math.MaxUint32 {
				return fmt.Errorf("more than 16 TiB: %w", ErrTooLarge)
			}
			m.next += uint32(blocks)
			m.extra = append(m.extra, in)
		}
	}
	body += in.inline
	// An inode does not cross a block; neither does content that lies inside of it.
	together := extendedSize
	if in.inline > 0 {
		together = body
	}
	if m.size%blockSize+int64(together) > blockSize {
		m.size = align(m.size, blockSize)
	}
	in.at = m.size
	m.size = align(m.size+int64(body), inodeUnit)
	if m.size/inodeUnit > math.MaxUint32 {
		return fmt.Errorf("more than %d GiB of metadata: %w", math.MaxUint32*inodeUnit>>30, ErrTooLarge)
	}
	return nil
}

// placeFile decides how the contents of a regular file are mapped.
func (m *metadata) placeFile(in *inode) {
	n := in.node
	blocks := uint32((n.Size + blockSize - 1) / blockSize)
	if len(n.Tail) > 0 {
		blocks = uint32(n.Size / blockSize)
		in.layout = layoutInline
	}
	switch {
	case n.Size == 0 || blocks == 0:
		return
	case len(n.Runs) == 1 && n.Runs[0].File == 0 && n.Runs[0].Blocks >= blocks:
		in.block = n.Runs[0].Start
		return
	}
	// Holes or several runs: the largest chunk size of which every run but the last is a multiple.
	in.layout = layoutChunked
	m.chunky = true
	shift := uint(20)
	for i, r := range n.Runs {
		shift = min(shift, uint(bits.TrailingZeros32(r.File|1<<20)))
		if i < len(n.Runs)-1 || r.File+r.Blocks < blocks {
			shift = min(shift, uint(bits.TrailingZeros32((r.File+r.Blocks)|1<<20)))
		}
	}
	in.chunk = shift
	in.chunks = int((uint64(blocks) + 1<<shift - 1) >> shift)
}
