package erofs

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/stratavm/strata/internal/format/layertree"
)

type dirent struct {
	nid  uint64
	name string
}

// dirents reads a directory, without the dots.
func (im *image) dirents(in raw) ([]dirent, error) {
	if in.size > maxDirSize {
		return nil, im.corrupt("a directory of %d bytes", in.size)
	}
	b, err := im.data(in)
	if err != nil {
		return nil, err
	}
	var out []dirent
	seen := make(map[string]struct{})
	for len(b) > 0 {
		block := b[:min(len(b), blockSize)]
		b = b[len(block):]
		if len(block) < direntSize {
			return nil, im.corrupt("a directory block of %d bytes", len(block))
		}
		first := int(le.Uint16(block[8:]))
		if first < direntSize || first%direntSize != 0 || first > len(block) {
			return nil, im.corrupt("the names of a directory begin at %d", first)
		}
		for at := 0; at < first; at += direntSize {
			start, end := int(le.Uint16(block[at+8:])), len(block)
			if at+direntSize < first {
				end = int(le.Uint16(block[at+direntSize+8:]))
			}
			if start < first || end < start || end > len(block) {
				return nil, im.corrupt("a name from %d to %d in a directory block", start, end)
			}
			name := block[start:end]
			if at+direntSize >= first { // the last name of a block may be followed by zeroes
				if i := bytes.IndexByte(name, 0); i >= 0 {
					name = name[:i]
				}
			}
			s := string(name)
			if s == "." || s == ".." {
				continue
			}
			if s == "" || len(s) > 255 || strings.ContainsAny(s, "/\x00") {
				return nil, im.corrupt("a name of %d bytes, %.40q", len(s), s)
			}
			if _, twice := seen[s]; twice {
				return nil, im.corrupt("the name %.40q comes twice", s)
			}
			seen[s] = struct{}{}
			if im.names++; im.names > maxReadNodes {
				return nil, im.corrupt("more names than %d", maxReadNodes)
			}
			if err := im.memory.take(int64(nameCost + len(s))); err != nil {
				return nil, err
			}
			out = append(out, dirent{le.Uint64(block[at:]), s})
		}
	}
	return out, nil
}

// xattrs reads the attributes in the length bytes at offset at.
func (im *image) xattrs(at, length int64) ([]layertree.Xattr, error) {
	if err := im.read(length); err != nil {
		return nil, err
	}
	b, err := im.r.bytes(at, length)
	if err != nil {
		return nil, err
	}
	shared := int(b[4])
	if len(b) < xattrHeader+4*shared {
		return nil, im.corrupt("%d shared attributes in %d bytes", shared, len(b))
	}
	var out []layertree.Xattr
	// The bytes may be overwritten by the next read.
	ids := slices.Clone(b[xattrHeader:][:4*shared])
	for rest := b[xattrHeader+4*shared:]; len(rest) >= 4; {
		x, n, err := im.xattr(rest)
		if err != nil {
			return nil, err
		}
		if x.Name != "" {
			out = append(out, x)
		}
		rest = rest[min(n, len(rest)):]
	}
	for ; len(ids) > 0; ids = ids[4:] {
		x, err := im.sharedXattr(le.Uint32(ids))
		if err != nil {
			return nil, err
		}
		if x.Name != "" {
			out = append(out, x)
		}
	}
	slices.SortFunc(out, func(a, b layertree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	for i := 1; i < len(out); i++ {
		if out[i].Name == out[i-1].Name {
			return nil, im.corrupt("the attribute %.40q comes twice", out[i].Name)
		}
	}
	return out, im.memory.take(int64(len(out)) * xattrCost)
}

// xattr returns the attribute at the beginning of b, and its size in bytes. The name is empty if its namespace is
// unknown.
func (im *image) xattr(b []byte) (x layertree.Xattr, n int, err error) {
	if len(b) < 4 {
		return x, 0, im.corrupt("an attribute of %d bytes", len(b))
	}
	value := 4 + int(b[0])
	end := value + int(le.Uint16(b[2:]))
	if end > len(b) {
		return x, 0, im.corrupt("an attribute of %d bytes where %d are left", end, len(b))
	}
	if name, ok := expandName(b[1], string(b[4:value])); ok {
		x = layertree.Xattr{Name: name, Value: string(b[value:end])}
		err = im.memory.take(int64(end))
	}
	return x, int(align(int64(end), 4)), err
}

// sharedXattr returns a shared attribute. It is read once and cached.
func (im *image) sharedXattr(id uint32) (x layertree.Xattr, err error) {
	if x, known := im.shared[id]; known {
		return x, nil
	}
	pos := int64(im.super.xattrs)*blockSize + 4*int64(id)
	head, err := im.r.bytes(pos, 4)
	if err != nil {
		return x, err
	}
	n := 4 + int64(head[0]) + int64(le.Uint16(head[2:]))
	if err := im.read(n); err != nil {
		return x, err
	}
	b, err := im.r.bytes(pos, n)
	if err != nil {
		return x, err
	}
	if x, _, err = im.xattr(b); err == nil {
		im.shared[id] = x
	}
	return x, err
}

// windows reads small parts of an image through a cache of large ones.
type windows struct {
	r    io.ReaderAt
	size int64
	have map[int64][]byte
	join []byte
}

const (
	windowSize = 256 << 10
	maxWindows = 256
)

func newWindows(r io.ReaderAt, size int64) *windows {
	return &windows{r: r, size: size, have: make(map[int64][]byte)}
}

// bytes returns n bytes at offset at. They are valid until the next call.
func (w *windows) bytes(at, n int64) ([]byte, error) {
	if at < 0 || n < 0 || at+n > w.size {
		return nil, ErrCorrupt
	}
	if n == 0 {
		return nil, nil
	}
	b, err := w.window(at / windowSize)
	if err != nil {
		return nil, err
	}
	b = b[at%windowSize:]
	if int64(len(b)) >= n {
		return b[:n], nil
	}
	w.join = append(w.join[:0], b...)
	for int64(len(w.join)) < n {
		b, err := w.window((at + int64(len(w.join))) / windowSize)
		if err != nil {
			return nil, err
		}
		w.join = append(w.join, b[:min(int64(len(b)), n-int64(len(w.join)))]...)
	}
	return w.join, nil
}

func (w *windows) window(i int64) ([]byte, error) {
	if b := w.have[i]; b != nil {
		return b, nil
	}
	if len(w.have) >= maxWindows {
		clear(w.have)
	}
	b := make([]byte, min(windowSize, w.size-i*windowSize))
	if n, err := w.r.ReadAt(b, i*windowSize); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	w.have[i] = b
	return b, nil
}
