package erofs

import (
	"fmt"
	"slices"

	"github.com/stratavm/strata/internal/format/layertree"
)

// writeInodes writes the inode area: all inodes in order, each with its attributes and what lies
// inline, and zeroes between.
func (m *metadata) writeInodes() error {
	zeroes := make([]byte, blockSize)
	at := int64(0)
	fill := func(to int64) error {
		for at < to {
			n := min(to-at, blockSize)
			if err := m.write(zeroes[:n]); err != nil {
				return err
			}
			at += n
		}
		return nil
	}
	for _, in := range m.inodes {
		if err := fill(in.at); err != nil {
			return err
		}
		b := m.encode(in)
		if err := m.write(b); err != nil {
			return err
		}
		at += int64(len(b))
	}
	return fill(align(m.size, blockSize))
}

// encode returns an inode with all that follows it directly.
func (m *metadata) encode(in *inode) []byte {
	n := in.node
	b := make([]byte, extendedSize, extendedSize+in.xattrs+in.inline+4*in.chunks+4)
	le.PutUint16(b[0:], in.layout<<1|1)
	if in.xattrs > 0 {
		le.PutUint16(b[2:], uint16((in.xattrs-xattrHeader)/4+1))
	}
	le.PutUint16(b[4:], uint16(n.Mode))
	size := uint64(n.Size)
	value := in.block // the word whose meaning depends on the type
	switch n.Type() {
	case layertree.TypeDir:
		size = uint64(dirSize(in.names))
	case layertree.TypeSymlink:
		size = uint64(len(n.Target))
	case layertree.TypeChar, layertree.TypeBlock:
		value = encodeDev(n.Major, n.Minor)
	case layertree.TypeRegular:
		if in.layout == layoutChunked {
			value = uint32(in.chunk)
		}
	}
	le.PutUint64(b[8:], size)
	le.PutUint32(b[16:], value)
	le.PutUint32(b[20:], uint32(in.at/inodeUnit)) // a number for 32-bit stat
	le.PutUint32(b[24:], n.UID)
	le.PutUint32(b[28:], n.GID)
	le.PutUint64(b[32:], uint64(n.Sec))
	le.PutUint32(b[40:], n.Nsec)
	le.PutUint32(b[44:], n.Nlink)
	b = appendXattrs(b, n.Xattrs)
	switch {
	case in.layout == layoutChunked:
		b = appendChunks(b, in)
	case in.inline > 0:
		b = append(b, m.inside(in)...)
	}
	return b
}

// contents returns the contents of a directory or symbolic link, or what of a file is written here.
func (m *metadata) contents(in *inode) []byte {
	switch in.node.Type() {
	case layertree.TypeDir:
		return m.dirents(in)
	case layertree.TypeSymlink:
		return []byte(in.node.Target)
	}
	return in.tail
}

// inside returns the part of the contents that is inline in the inode.
func (m *metadata) inside(in *inode) []byte {
	if in.node.Type() == layertree.TypeRegular {
		return in.node.Tail
	}
	b := m.contents(in)
	return b[len(b)-in.inline:]
}

// outside returns the part of the contents in separate blocks, padded to whole blocks.
func (m *metadata) outside(in *inode) []byte {
	b := m.contents(in)
	b = b[:len(b)-in.inline]
	return append(b[:len(b):len(b)], make([]byte, align(int64(len(b)), blockSize)-int64(len(b)))...)
}

func appendChunks(b []byte, in *inode) []byte {
	b = append(b, make([]byte, align(int64(len(b)), 4)-int64(len(b)))...)
	runs := in.node.Runs
	for c := range in.chunks {
		first := uint32(c) << in.chunk
		for len(runs) > 0 && runs[0].File+runs[0].Blocks <= first {
			runs = runs[1:]
		}
		block := uint32(nullBlock)
		if len(runs) > 0 && runs[0].File <= first {
			block = runs[0].Start + first - runs[0].File
		}
		b = le.AppendUint32(b, block)
	}
	return b
}

// dirNames returns the names of a directory in the order of EROFS, including "." and "..".
func dirNames(n *layertree.Node) []string {
	names := append(n.Names(), ".", "..")
	slices.Sort(names)
	return names
}

// dirBlock reports how many of names go into the next block, and the bytes they use.
func dirBlock(names []string) (count, used int) {
	for _, name := range names {
		need := direntSize + len(name)
		if used+need > blockSize {
			break
		}
		used += need
		count++
	}
	return count, used
}

// dirSize returns the size of a directory: all blocks but the last count as full.
func dirSize(names []string) int {
	size := 0
	for len(names) > 0 {
		count, used := dirBlock(names)
		if names = names[count:]; len(names) > 0 {
			used = blockSize
		}
		size += used
	}
	return size
}

// dirents returns the contents of a directory: in each block the entries, then their names.
func (m *metadata) dirents(in *inode) []byte {
	out := make([]byte, 0, align(int64(dirSize(in.names)), blockSize))
	for names := in.names; len(names) > 0; {
		count, _ := dirBlock(names)
		start, nameAt := len(out), count*direntSize
		for _, name := range names[:count] {
			child := in
			switch name {
			case ".":
			case "..":
				child = in.parent
			default:
				child = m.index[in.node.Child(name)]
			}
			out = le.AppendUint64(out, uint64(child.at/inodeUnit))
			out = le.AppendUint16(out, uint16(nameAt))
			out = append(out, fileTypes[child.node.Type()], 0)
			nameAt += len(name)
		}
		for _, name := range names[:count] {
			out = append(out, name...)
		}
		if names = names[count:]; len(names) > 0 {
			out = append(out, make([]byte, start+blockSize-len(out))...)
		}
	}
	return out
}

// xattrSize returns the size of the attributes after the inode.
func xattrSize(attrs []layertree.Xattr) (int, error) {
	if len(attrs) == 0 {
		return 0, nil
	}
	size := xattrHeader
	for _, a := range attrs {
		_, rest, ok := compressName(a.Name)
		if !ok {
			return 0, fmt.Errorf("attribute %q: EROFS does not know its name space", a.Name)
		}
		if len(rest) > 255 || len(a.Value) > 65535 {
			return 0, fmt.Errorf("attribute %.64q of %d bytes: at most 65535 fit in EROFS: %w",
				a.Name, len(a.Value), ErrTooLarge)
		}
		size += int(align(int64(4+len(rest)+len(a.Value)), 4))
	}
	if (size-xattrHeader)/4+1 > 65535 {
		return 0, fmt.Errorf("%d bytes of attributes: at most 256 KiB fit in EROFS: %w", size, ErrTooLarge)
	}
	return size, nil
}

func appendXattrs(b []byte, attrs []layertree.Xattr) []byte {
	if len(attrs) == 0 {
		return b
	}
	b = append(b, make([]byte, xattrHeader)...) // none is shared
	for _, a := range attrs {
		index, rest, _ := compressName(a.Name)
		b = append(b, byte(len(rest)), index)
		b = le.AppendUint16(b, uint16(len(a.Value)))
		b = append(b, rest...)
		b = append(b, a.Value...)
		b = append(b, make([]byte, align(int64(len(b)), 4)-int64(len(b)))...)
	}
	return b
}
