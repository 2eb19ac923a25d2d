package cpio

import (
	"fmt"
	"io"
	"strconv"
)

// Reader reads an archive: Next, then Read until io.EOF, for each file.
type Reader struct {
	r    io.Reader
	left int64
	pad  int64
	err  error // sticky
}

// NewReader returns a Reader from r. It does not buffer: pass a bufio.Reader.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// Next skips the rest of the current file and returns the header of the next one, or io.EOF after the last. If the
// archive has no trailer the error is io.ErrUnexpectedEOF.
func (r *Reader) Next() (Header, error) {
	h, err := r.next()
	if err != nil {
		r.err, r.left, r.pad = err, 0, 0
		return Header{}, err
	}
	return h, nil
}

func (r *Reader) next() (Header, error) {
	if r.err != nil {
		return Header{}, r.err
	}
	if _, err := io.CopyN(io.Discard, r.r, r.left+r.pad); err != nil {
		return Header{}, short(err)
	}
	r.left, r.pad = 0, 0
	var b [headerLen]byte
	if _, err := io.ReadFull(r.r, b[:]); err != nil {
		return Header{}, short(err)
	}
	if string(b[:6]) != "070701" {
		return Header{}, fmt.Errorf("cpio: header begins with %q: %w", b[:6], ErrFormat)
	}
	var f [13]uint32
	for i := range f {
		v, err := strconv.ParseUint(string(b[6+8*i:14+8*i]), 16, 32)
		if err != nil {
			return Header{}, fmt.Errorf("cpio: header field %d: %v: %w", i, err, ErrFormat)
		}
		f[i] = uint32(v)
	}
	nameLen := int64(f[11])
	if nameLen < 2 || nameLen > MaxName+1 {
		return Header{}, fmt.Errorf("cpio: name of %d bytes: %w", nameLen-1, ErrFormat)
	}
	name := make([]byte, nameLen+pad(headerLen+nameLen))
	if _, err := io.ReadFull(r.r, name); err != nil {
		return Header{}, short(err)
	}
	if name[nameLen-1] != 0 {
		return Header{}, fmt.Errorf("cpio: name does not end with NUL: %w", ErrFormat)
	}
	h := Header{
		Name: string(name[:nameLen-1]), Inode: f[0], Mode: f[1], UID: f[2], GID: f[3], Links: f[4],
		ModTime: f[5], Size: int64(f[6]), DevMajor: f[7], DevMinor: f[8], Major: f[9], Minor: f[10],
	}
	if h.Name == trailer {
		return Header{}, io.EOF
	}
	if err := checkName(h.Name); err != nil {
		return Header{}, err
	}
	r.left, r.pad = h.Size, pad(h.Size)
	return h, nil
}

// Read reads the content of the current file.
func (r *Reader) Read(b []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if r.left == 0 {
		return 0, io.EOF
	}
	if int64(len(b)) > r.left {
		b = b[:r.left]
	}
	n, err := r.r.Read(b)
	r.left -= int64(n)
	if err != nil && r.left > 0 {
		r.err = short(err)
		return n, r.err
	}
	return n, nil
}

func short(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("cpio: reading: %w", err)
}
