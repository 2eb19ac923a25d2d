package erofs

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/stratavm/strata/internal/format/layertree"
)

// Errors of Open.
var (
	ErrNotEROFS    = errors.New("not an EROFS image")
	ErrCorrupt     = errors.New("the EROFS image is damaged")
	ErrUnsupported = errors.New("the EROFS image has a feature that is not known here (compression, or several devices)")
)

// Limits of Open.
const (
	maxReadNodes = layertree.DefaultMaxEntries // files, and names of files
	maxDirSize   = 256 << 20
	maxDepth     = 4096

	// DefaultMaxMemory limits the memory for reading an image, or all layers of an index, in bytes by a conservative
	// estimate.
	DefaultMaxMemory = 1 << 30
)

// super has the used fields of a super block.
type super struct {
	root   uint64
	blocks uint32
	meta   uint32 // first block of metadata
	xattrs uint32 // first block of shared attributes
}

func readSuper(r io.ReaderAt, size int64) (super, error) {
	b := make([]byte, superSize)
	if _, err := r.ReadAt(b, superOffset); err != nil {
		if errors.Is(err, io.EOF) {
			return super{}, fmt.Errorf("erofs: %w: it has only %d bytes", ErrNotEROFS, size)
		}
		return super{}, fmt.Errorf("erofs: read the super block: %w", err)
	}
	if le.Uint32(b) != magic {
		return super{}, fmt.Errorf("erofs: %w", ErrNotEROFS)
	}
	if b[12] != blockBits || b[90] != 0 {
		return super{}, fmt.Errorf("erofs: %w: blocks of 2^%d bytes, only 4096 are used", ErrUnsupported, b[12])
	}
	if extra := le.Uint32(b[80:]) &^ (incompatChunked | incompatDeviceTable); extra != 0 || le.Uint16(b[86:]) != 0 {
		return super{}, fmt.Errorf("erofs: %w: features %#x, %d more devices",
			ErrUnsupported, extra, le.Uint16(b[86:]))
	}
	s := super{root: uint64(le.Uint16(b[14:])), blocks: le.Uint32(b[36:]),
		meta: le.Uint32(b[40:]), xattrs: le.Uint32(b[44:])}
	if int64(s.blocks)*blockSize > size {
		return s, fmt.Errorf("erofs: %w: it says it has %d blocks, the file has %d bytes (truncated?)",
			ErrCorrupt, s.blocks, size)
	}
	return s, nil
}

// Open reads the metadata of the uncompressed image r of at most size bytes. Contents inline in inodes, as mkfs.erofs
// writes them, are kept in memory. The image may be hostile: all offsets and sums are checked, and errors match
// ErrCorrupt. Memory is proportional to the size of the image, and at most DefaultMaxMemory; beyond that the error
// matches ErrTooLarge.
func Open(r io.ReaderAt, size int64) (*layertree.Tree, error) {
	return open(r, size, newBudget(DefaultMaxMemory))
}

func open(r io.ReaderAt, size int64, memory *budget) (*layertree.Tree, error) {
	s, err := readSuper(r, size)
	if err != nil {
		return nil, err
	}
	tree, err := newImage(s, newWindows(r, int64(s.blocks)*blockSize), memory).tree()
	if err != nil {
		return nil, fmt.Errorf("erofs: %w", err)
	}
	return tree, nil
}

// image is the state of Open.
type image struct {
	super
	r      *windows
	known  map[uint64]*layertree.Node
	shared map[uint32]layertree.Xattr
	nodes  int
	names  int // entries of directories

	memory *budget
	unread int64 // bytes of metadata that were not read yet, see read
}

func newImage(s super, r *windows, memory *budget) *image {
	return &image{r: r, super: s, memory: memory, unread: r.size, known: make(map[uint64]*layertree.Node),
		shared: make(map[uint32]layertree.Xattr)}
}

// raw is an inode without its contents.
type raw struct {
	node   *layertree.Node
	layout uint16
	size   int64
	value  uint32
	after  int64 // offset of what follows inode and attributes
}

func (im *image) corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// top reads the directory that holds all others.
func (im *image) top() (raw, error) {
	root, err := im.inode(im.root)
	if err == nil && !root.node.IsDir() {
		err = im.corrupt("the root is no directory")
	}
	return root, err
}

func (im *image) tree() (*layertree.Tree, error) {
	root, err := im.top()
	if err != nil {
		return nil, err
	}
	im.known[im.root] = root.node
	type item struct {
		dir   raw
		depth int
	}
	implied := false
	stack := []item{{root, 0}}
	for len(stack) > 0 {
		it := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if it.depth > maxDepth {
			return nil, im.corrupt("directories are more than %d deep", maxDepth)
		}
		ents, err := im.dirents(it.dir)
		if err != nil {
			return nil, err
		}
		for _, e := range ents {
			child := im.known[e.nid]
			if child == nil {
				c, err := im.inode(e.nid)
				if err != nil {
					return nil, fmt.Errorf("%q: %w", e.name, err)
				}
				if child = c.node; child.IsDir() {
					stack = append(stack, item{c, it.depth + 1})
				} else if err := im.contents(c); err != nil {
					return nil, fmt.Errorf("%q: %w", e.name, err)
				}
				im.known[e.nid] = child
			} else if child.IsDir() {
				return nil, im.corrupt("a directory has two names, one is %q", e.name)
			}
			it.dir.node.SetChild(e.name, child)
			implied = implied || child.Implied
		}
	}
	return &layertree.Tree{Root: root.node, NextBlock: im.blocks, HasImplied: implied}, nil
}

// inode reads the inode with a number and its attributes.
func (im *image) inode(nid uint64) (raw, error) {
	if nid > uint64(im.blocks)*(blockSize/inodeUnit) {
		return raw{}, im.corrupt("inode %d lies outside", nid)
	}
	if im.nodes++; im.nodes > maxReadNodes {
		return raw{}, im.corrupt("more than %d files", maxReadNodes)
	}
	if err := im.memory.take(nodeCost); err != nil {
		return raw{}, err
	}
	at := int64(im.meta)*blockSize + int64(nid)*inodeUnit
	b, err := im.r.bytes(at, compactSize)
	if err != nil {
		return raw{}, err
	}
	format := le.Uint16(b)
	in := raw{node: &layertree.Node{}, layout: format >> 1 & 7, value: le.Uint32(b[16:])}
	n := in.node
	count := int64(le.Uint16(b[2:]))
	n.Mode = uint32(le.Uint16(b[4:]))
	head := int64(compactSize)
	if format&1 == 0 {
		in.size = int64(le.Uint32(b[8:]))
		n.UID, n.GID = uint32(le.Uint16(b[24:])), uint32(le.Uint16(b[26:]))
	} else {
		head = extendedSize
		if b, err = im.r.bytes(at, extendedSize); err != nil {
			return raw{}, err
		}
		size := le.Uint64(b[8:])
		if size > 1<<60 {
			return raw{}, im.corrupt("inode %d has %d bytes", nid, size)
		}
		in.size = int64(size)
		n.UID, n.GID = le.Uint32(b[24:]), le.Uint32(b[28:])
		n.Sec, n.Nsec = int64(le.Uint64(b[32:])), le.Uint32(b[40:])
	}
	if err := im.read(head); err != nil {
		return raw{}, err
	}
	in.after = at + head
	if count > 0 {
		length := xattrHeader + 4*(count-1)
		if n.Xattrs, err = im.xattrs(in.after, length); err != nil {
			return raw{}, err
		}
		in.after += length
		readImplied(n)
	}
	switch n.Type() {
	case layertree.TypeDir:
		n.Nlink = 2
	case layertree.TypeChar, layertree.TypeBlock:
		n.Major, n.Minor = decodeDev(in.value)
	case layertree.TypeRegular, layertree.TypeSymlink, layertree.TypeFifo, layertree.TypeSocket:
	default:
		return raw{}, im.corrupt("inode %d has the mode %o", nid, n.Mode)
	}
	return in, nil
}

// contents records the location of a file's contents, or reads the target of a symbolic link.
func (im *image) contents(in raw) error {
	n := in.node
	switch n.Type() {
	case layertree.TypeSymlink:
		if in.size < 1 || in.size > 4095 {
			return im.corrupt("a symbolic link of %d bytes", in.size)
		}
		b, err := im.data(in)
		n.Target = string(b)
		if strings.ContainsRune(n.Target, 0) {
			return im.corrupt("a NUL character in a symbolic link")
		}
		return err
	case layertree.TypeRegular:
	default:
		return nil
	}
	n.Size = in.size
	if in.size == 0 {
		return nil
	}
	blocks := (in.size + blockSize - 1) / blockSize
	switch in.layout {
	case layoutInline:
		blocks = in.size / blockSize
		tail, err := im.tail(in)
		if err != nil {
			return err
		}
		n.Tail = slices.Clone(tail)
		fallthrough
	case layoutPlain:
		if blocks > 0 {
			return im.addRun(n, layertree.Run{Start: in.value}, blocks)
		}
		return nil
	case layoutChunked:
		return im.chunks(in, blocks)
	}
	return fmt.Errorf("%w: layout %d", ErrUnsupported, in.layout)
}

// addRun appends a run of blocks, after checking that it is in the image.
func (im *image) addRun(n *layertree.Node, r layertree.Run, blocks int64) error {
	if int64(r.Start)+blocks > int64(im.blocks) || int64(r.File)+blocks > nullBlock {
		return im.corrupt("contents of %d blocks from block %d on lie outside", blocks, r.Start)
	}
	r.Blocks = uint32(blocks)
	if k := len(n.Runs) - 1; k >= 0 {
		last := &n.Runs[k]
		if last.File+last.Blocks == r.File && last.Start+last.Blocks == r.Start {
			last.Blocks += r.Blocks
			return nil
		}
	}
	n.Runs = append(n.Runs, r)
	return im.memory.take(runCost)
}

func (im *image) chunks(in raw, blocks int64) error {
	format := in.value & 0xffff
	if format&^chunkKnown != 0 {
		return fmt.Errorf("%w: chunk format %#x", ErrUnsupported, format)
	}
	unit := int64(4)
	if format&chunkIndexes != 0 {
		unit = 8
	}
	size := int64(1) << (format & chunkBitsMask)
	count := (blocks + size - 1) / size
	at := align(in.after, unit)
	if at+count*unit > int64(im.blocks)*blockSize {
		return im.corrupt("a map of %d chunks lies outside", count)
	}
	if err := im.read(count * unit); err != nil {
		return err
	}
	for i := range count {
		b, err := im.r.bytes(at+i*unit, unit)
		if err != nil {
			return err
		}
		start := le.Uint32(b[unit-4:])
		if unit == 8 && start != nullBlock && le.Uint16(b[2:]) != 0 {
			return fmt.Errorf("%w: contents on another device", ErrUnsupported)
		}
		if start == nullBlock {
			continue
		}
		run := layertree.Run{File: uint32(i * size), Start: start}
		if err := im.addRun(in.node, run, min(size, blocks-i*size)); err != nil {
			return err
		}
	}
	return nil
}

// tail returns the part of the contents that follows the inode.
func (im *image) tail(in raw) ([]byte, error) {
	n := in.size % blockSize
	if in.after%blockSize+n > blockSize {
		return nil, im.corrupt("contents inside an inode cross a block")
	}
	if err := errors.Join(im.read(n), im.memory.take(n)); err != nil {
		return nil, err
	}
	return im.r.bytes(in.after, n)
}

// data reads the contents of a directory or symbolic link.
func (im *image) data(in raw) ([]byte, error) {
	if in.layout != layoutPlain && in.layout != layoutInline {
		return nil, fmt.Errorf("%w: layout %d of a directory or symbolic link", ErrUnsupported, in.layout)
	}
	whole := in.size
	if in.layout == layoutInline {
		whole -= in.size % blockSize
	}
	if err := errors.Join(im.read(whole), im.memory.take(whole)); err != nil {
		return nil, err
	}
	out := make([]byte, 0, min(in.size, 1<<20))
	for at := int64(in.value) * blockSize; int64(len(out)) < whole; {
		n := min(whole-int64(len(out)), blockSize)
		b, err := im.r.bytes(at, n)
		if err != nil {
			return nil, err
		}
		out = append(out, b...)
		at += n
	}
	if in.layout == layoutInline {
		b, err := im.tail(in)
		if err != nil {
			return nil, err
		}
		out = append(out, b...)
	}
	return out, nil
}
