package image

import (
	"errors"
	"io"
)

const (
	chunkBytes  = 256 << 10
	chunksAhead = 4
)

// ahead runs a producer of chunks in a goroutine, a few chunks ahead of its reader.
type ahead struct {
	chunks chan []byte
	free   chan []byte // chunks that were read, for reuse
	quit   chan struct{}
	gone   chan struct{}
	chunk  []byte // chunk being read
	pos    int
	err    error // valid once chunks is closed
}

func newAhead(produce func(*ahead) error) *ahead {
	a := &ahead{chunks: make(chan []byte, chunksAhead), free: make(chan []byte, chunksAhead+2),
		quit: make(chan struct{}), gone: make(chan struct{})}
	go func() {
		defer close(a.gone)
		a.err = produce(a)
		close(a.chunks)
	}()
	return a
}

// buffer returns an empty chunk for the producer to fill.
func (a *ahead) buffer() []byte {
	select {
	case b := <-a.free:
		return b[:0]
	default:
		return make([]byte, 0, chunkBytes)
	}
}

// errNoReader ends a producer whose reader has stopped.
var errNoReader = errors.New("nobody reads")

// copy is a producer of the data of r. It returns the error of r, or errNoReader.
func (a *ahead) copy(r io.Reader) (err error) {
	for err == nil {
		buf := a.buffer()
		for len(buf) < cap(buf) && err == nil {
			var n int
			n, err = r.Read(buf[len(buf):cap(buf)])
			buf = buf[:len(buf)+n]
		}
		if len(buf) == 0 {
			continue
		}
		select {
		case a.chunks <- buf:
		case <-a.quit:
			return errNoReader
		}
	}
	return err
}

func (a *ahead) Read(b []byte) (int, error) {
	for a.pos == len(a.chunk) {
		if cap(a.chunk) > 0 {
			select {
			case a.free <- a.chunk:
			default:
			}
			a.chunk, a.pos = nil, 0
		}
		chunk, ok := <-a.chunks
		if !ok {
			return 0, a.err
		}
		a.chunk, a.pos = chunk, 0
	}
	n := copy(b, a.chunk[a.pos:])
	a.pos += n
	return n, nil
}

// stop ends the producer and waits for it. It is idempotent, but must not be called concurrently.
func (a *ahead) stop() {
	select {
	case <-a.quit:
	default:
		close(a.quit)
	}
	<-a.gone
}
