package layertree

import (
	"bytes"
	"fmt"
	"io"
	"math"
)

const (
	copyBuffer = 1 << 20
	minHole    = 64 << 10 // a run of zeroes as long as this, and aligned to it, takes no space
	maxPieces  = 1 << 16  // files with more pieces have larger ones, of up to copyBuffer
)

// contents appends the contents of files to an image.
type contents struct {
	w    io.Writer
	next uint32
	buf  []byte
	pad  [BlockSize]byte
}

// holeUnit returns the size of the pieces of a file that become holes if they are zero.
func holeUnit(size int64) int64 {
	unit := int64(minHole)
	for size/unit > maxPieces && unit < copyBuffer {
		unit *= 2
	}
	return unit
}

// add copies size bytes of r and returns their location.
func (c *contents) add(r io.Reader, size int64) ([]Run, error) {
	if blocks := (size + BlockSize - 1) / BlockSize; blocks > math.MaxUint32-1 {
		return nil, fmt.Errorf("%d bytes are more than a file can have", size)
	}
	if c.buf == nil {
		c.buf = make([]byte, copyBuffer)
	}
	unit := int(holeUnit(size))
	var runs []Run
	for off := int64(0); off < size; {
		b := c.buf[:min(size-off, copyBuffer)]
		if _, err := io.ReadFull(r, b); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		hole := func(at int) bool {
			return size >= int64(unit) && isZero(b[at:min(at+unit, len(b))])
		}
		for start := 0; start < len(b); {
			empty := hole(start)
			end := min(start+unit, len(b))
			for end < len(b) && hole(end) == empty {
				end = min(end+unit, len(b))
			}
			if !empty {
				if err := c.write(&runs, off+int64(start), b[start:end]); err != nil {
					return nil, err
				}
			}
			start = end
		}
		off += int64(len(b))
	}
	return runs, nil
}

// write appends b, which is at offset off of its file, and pads its last block.
func (c *contents) write(runs *[]Run, off int64, b []byte) error {
	if _, err := c.w.Write(b); err != nil {
		return err
	}
	if rest := len(b) % BlockSize; rest != 0 {
		if _, err := c.w.Write(c.pad[rest:]); err != nil {
			return err
		}
	}
	return c.took(runs, off, int64(len(b)))
}

// took records that n bytes at offset off of a file were appended.
func (c *contents) took(runs *[]Run, off, n int64) error {
	blocks := uint32((n + BlockSize - 1) / BlockSize)
	if uint64(c.next)+uint64(blocks) >= math.MaxUint32 {
		return fmt.Errorf("the image exceeds %d blocks", uint32(math.MaxUint32))
	}
	first := uint32(off / BlockSize)
	start := c.next
	c.next += blocks
	if k := len(*runs) - 1; k >= 0 {
		last := &(*runs)[k]
		if last.File+last.Blocks == first && last.Start+last.Blocks == start {
			last.Blocks += blocks
			return nil
		}
	}
	*runs = append(*runs, Run{File: first, Start: start, Blocks: blocks})
	return nil
}

func isZero(b []byte) bool {
	// Most pieces differ from zero at once; the rest is a comparison that the library does by words.
	var zero [BlockSize]byte
	for len(b) > 0 {
		n := min(len(b), BlockSize)
		if b[0] != 0 || !bytes.Equal(b[:n], zero[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}
