package image

import (
	"bufio"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
)

// gunzip decompresses all members of a gzip file. Like "gzip -d" it ignores trailing zeroes, with which some writers
// pad their output. Other trailing data is an error.
type gunzip struct {
	r *bufio.Reader
	z *gzip.Reader
}

var errTrailing = errors.New("something that is no gzip follows the compressed data")

func newGunzip(r *bufio.Reader) (*gunzip, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	z.Multistream(false)
	return &gunzip{r: r, z: z}, nil
}

func (g *gunzip) Read(b []byte) (int, error) {
	for {
		n, err := g.z.Read(b)
		if err != io.EOF {
			return n, err
		}
		if err := g.next(); n > 0 || err != nil {
			return n, err
		}
	}
}

// next advances to the next member; after the last it returns io.EOF.
func (g *gunzip) next() error {
	next, err := g.r.Peek(2)
	if len(next) == 0 {
		return err // io.EOF at the end
	}
	switch {
	case next[0] == 0:
		return g.zeroes()
	case next[0] != 0x1f, len(next) == 2 && next[1] != 0x8b:
		return errTrailing
	}
	if err := g.z.Reset(g.r); err != nil {
		return unexpected(err)
	}
	g.z.Multistream(false)
	return nil
}

// zeroes reads to the end of the file and returns io.EOF if only zeroes are left.
func (g *gunzip) zeroes() error {
	for {
		c, err := g.r.ReadByte()
		if err != nil {
			return err
		}
		if c != 0 {
			return errTrailing
		}
	}
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
