package cpio

import (
	"fmt"
	"io"
)

// Writer writes an archive: WriteHeader, then Size bytes by Write, for each file; then Close.
type Writer struct {
	w     io.Writer
	inode uint32
	left  int64 // bytes that the current file still needs
	pad   int64 // that follow it
	err   error // the first failure; every later call repeats it
}

// NewWriter returns a Writer to w. It does not buffer: pass a bufio.Writer.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// WriteHeader ends the previous file and begins the next.
func (w *Writer) WriteHeader(h Header) error {
	if err := checkName(h.Name); err != nil {
		return err
	}
	if h.Size < 0 || h.Size > MaxSize {
		return fmt.Errorf("cpio: %s has %d bytes: %w", h.Name, h.Size, ErrTooLarge)
	}
	return w.header(h)
}

func (w *Writer) header(h Header) error {
	if err := w.finish(); err != nil {
		return err
	}
	if h.Inode == 0 {
		w.inode++
		h.Inode = w.inode
	}
	if h.Links == 0 {
		h.Links = 1
	}
	b := make([]byte, 0, headerLen+len(h.Name)+4)
	b = append(b, "070701"...)
	for _, v := range []uint32{
		h.Inode, h.Mode, h.UID, h.GID, h.Links, h.ModTime, uint32(h.Size),
		h.DevMajor, h.DevMinor, h.Major, h.Minor, uint32(len(h.Name) + 1), 0,
	} {
		b = fmt.Appendf(b, "%08x", v)
	}
	b = append(append(b, h.Name...), 0)
	b = append(b, zeroes[:pad(int64(len(b)))]...)
	w.left, w.pad = h.Size, pad(h.Size)
	return w.raw(b)
}

var zeroes [4]byte

func (w *Writer) raw(b []byte) error {
	if w.err == nil {
		_, w.err = w.w.Write(b)
	}
	return w.err
}

// finish pads the current file. It fails when the file is not complete.
func (w *Writer) finish() error {
	if w.err == nil && w.left != 0 {
		w.err = fmt.Errorf("cpio: %d bytes are missing: %w", w.left, ErrSize)
	}
	n := w.pad
	w.pad = 0
	if n == 0 {
		return w.err
	}
	return w.raw(zeroes[:n])
}

// Write writes content of the current file. A write beyond its size fails without writing anything.
func (w *Writer) Write(b []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if int64(len(b)) > w.left {
		return 0, fmt.Errorf("cpio: %d bytes too many: %w", int64(len(b))-w.left, ErrSize)
	}
	n, err := w.w.Write(b)
	w.left -= int64(n)
	w.err = err
	return n, err
}

// Close ends the last file and writes the trailer. It does not close the underlying writer.
func (w *Writer) Close() error {
	return w.header(Header{Name: trailer, Inode: 0})
}
