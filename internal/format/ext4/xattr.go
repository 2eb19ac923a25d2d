package ext4

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/stratavm/strata/internal/format/layertree"
)

const (
	xattrMagic   = 0xea020000
	xattrHeader  = 32 // of a block
	xattrInInode = inodeSize - 128 - extraSize
)

// ErrXattrs: the attributes of a file exceed the limit of ext4.
var ErrXattrs = errors.New("the extended attributes of the file do not fit in ext4 (about 4 KiB): choose the EROFS " +
	"format")

// xattrPrefixes are the prefixes of attribute names with their numbers.
var xattrPrefixes = [...]struct {
	prefix string
	index  byte
}{
	{layertree.AccessACL, 2}, {layertree.DefaultACL, 3},
	{"user.", 1}, {"trusted.", 4}, {"security.", 6}, {"system.", 7},
}

type xattr struct {
	index byte
	name  string
	value string
}

func (x xattr) entryLen() int { return (16 + len(x.name) + 3) &^ 3 }
func (x xattr) valueLen() int { return (len(x.value) + 3) &^ 3 }

// encodeXattrs encodes attributes: those that fit into the inode, and the rest for one block, in the kernel's search
// order.
func encodeXattrs(attrs []layertree.Xattr) (inside, block []byte, err error) {
	if len(attrs) == 0 {
		return nil, nil, nil
	}
	var in, out []xattr
	left := xattrInInode - 8 // the magic number, and the zeroes that end the list
	for _, a := range attrs {
		x, err := compress(a)
		if err != nil {
			return nil, nil, err
		}
		if need := x.entryLen() + x.valueLen(); need <= left {
			in = append(in, x)
			left -= need
		} else {
			out = append(out, x)
		}
	}
	if len(in) > 0 {
		inside = make([]byte, xattrInInode)
		le.PutUint32(inside, xattrMagic)
		// Offsets of values count from the first entry here.
		putXattrs(inside[4:], in, 0, false)
	}
	if len(out) == 0 {
		return inside, nil, nil
	}
	slices.SortFunc(out, func(a, b xattr) int {
		if a.index != b.index {
			return int(a.index) - int(b.index)
		}
		if len(a.name) != len(b.name) {
			return len(a.name) - len(b.name)
		}
		return strings.Compare(a.name, b.name)
	})
	need := xattrHeader + 4
	for _, x := range out {
		need += x.entryLen() + x.valueLen()
	}
	if need > blockSize {
		return nil, nil, fmt.Errorf("%d bytes of attributes: %w", need, ErrXattrs)
	}
	block = make([]byte, blockSize)
	le.PutUint32(block, xattrMagic)
	le.PutUint32(block[4:], 1) // reference count
	le.PutUint32(block[8:], 1) // blocks
	putXattrs(block[xattrHeader:], out, xattrHeader, true)
	return inside, block, nil
}

// putXattrs writes entries from the beginning of b on and their values before its end. base is added
// to the offsets of values.
func putXattrs(b []byte, attrs []xattr, base int, hashes bool) {
	at, end := 0, len(b)
	for _, x := range attrs {
		end -= x.valueLen()
		e := b[at:]
		e[0], e[1] = byte(len(x.name)), x.index
		if len(x.value) > 0 {
			le.PutUint16(e[2:], uint16(end+base))
		}
		le.PutUint32(e[8:], uint32(len(x.value)))
		if hashes {
			le.PutUint32(e[12:], hashXattr(x))
		}
		copy(e[16:], x.name)
		copy(b[end:], x.value)
		at += x.entryLen()
	}
}

// hashXattr is the hash that e2fsck recomputes.
func hashXattr(x xattr) uint32 {
	var h uint32
	for i := range len(x.name) {
		h = h<<5 ^ h>>27 ^ uint32(x.name[i])
	}
	v := make([]byte, x.valueLen())
	copy(v, x.value)
	for ; len(v) > 0; v = v[4:] {
		h = h<<16 ^ h>>16 ^ le.Uint32(v)
	}
	return h
}

func compress(a layertree.Xattr) (xattr, error) {
	for _, p := range xattrPrefixes {
		rest, ok := strings.CutPrefix(a.Name, p.prefix)
		if !ok {
			continue
		}
		x := xattr{index: p.index, name: rest, value: a.Value}
		if p.prefix == layertree.AccessACL || p.prefix == layertree.DefaultACL {
			if rest != "" {
				continue
			}
			var err error
			if x.value, err = encodeACL(a.Value); err != nil {
				return xattr{}, fmt.Errorf("attribute %s: %w", a.Name, err)
			}
		}
		return x, nil
	}
	return xattr{}, fmt.Errorf("attribute %q: ext4 does not know its name space", a.Name)
}

// encodeACL converts an ACL from the format of getxattr (version 2, 8 bytes per entry) to that of ext4 (version 1, 4
// bytes for entries without an id).
func encodeACL(v string) (string, error) {
	in := []byte(v)
	if len(in) < 4 || (len(in)-4)%8 != 0 || le.Uint32(in) != 2 {
		return "", fmt.Errorf("%d bytes are no POSIX ACL of version 2", len(in))
	}
	out := le.AppendUint32(nil, 1)
	for in = in[4:]; len(in) > 0; in = in[8:] {
		out = append(out, in[:4]...) // tag and permissions
		if tag := le.Uint16(in); tag == 0x02 || tag == 0x08 {
			out = append(out, in[4:8]...)
		}
	}
	return string(out), nil
}
