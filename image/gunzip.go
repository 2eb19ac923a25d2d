package image

import (
	"bufio"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
)

// gunzip reads the members of a gzip file, one after the other. Zeroes may follow them, as "gzip -d" ignores
// them: some writers fill their output up to whole blocks. Anything else is an error.
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

// next goes to the next member; at the end of the last it returns io.EOF.
func (g *gunzip) next() error {
	next, err := g.r.Peek(2)
	if len(next) == 0 {
		return err // io.EOF where it is the end
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

// zeroes reads to the end of the file and returns io.EOF when all that is left is zero.
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
