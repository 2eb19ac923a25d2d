package gcs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
)

// ServePort is the guest's end of a byte stream with successive sessions. When a host has begun a session, it calls
// serve with the session's stream in a new goroutine; serve must close the stream. The stream returns io.EOF when the
// host disconnects or begins another session.
//
// port.Read must return io.EOF when the host disconnects, and then block until the next host connects. ServePort
// returns on any other error, after the last session has ended.
func ServePort(port io.ReadWriter, serve func(io.ReadWriteCloser)) error {
	g := &guestLink{port: port, serve: serve}
	defer g.running.Wait()
	defer g.endSession()
	buf := make([]byte, 64<<10)
	for {
		n, err := port.Read(buf)
		if n > 0 {
			if err := g.feed(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			g.hangUp()
		default:
			return fmt.Errorf("read from the host: %w", err)
		}
	}
}

// guestLink parses the bytes from the host. Only the reading goroutine uses its fields, except writing.
type guestLink struct {
	port    io.ReadWriter
	serve   func(io.ReadWriteCloser)
	running sync.WaitGroup
	writing sync.Mutex // held for each whole write to port

	session *guestStream
	nonce   string // of the last HELLO
	escaped bool   // the last byte was escape
	marking bool   // within a frame
	mark    []byte // what there is of it
}

func (g *guestLink) feed(b []byte) error {
	for len(b) > 0 {
		switch {
		case g.escaped:
			c := b[0]
			g.escaped = false
			switch c {
			case escapeByte:
				g.deliver([]byte{escape})
			case escapeMark:
				g.marking, g.mark = true, g.mark[:0]
			case escape: // the previous escape byte was the last one of an interrupted session
				g.endSession()
				g.escaped = true
			default:
				g.endSession()
			}
			b = b[1:]
		case b[0] == escape:
			g.escaped, g.marking = true, false
			b = b[1:]
		case g.marking:
			n := min(markSize-len(g.mark), len(b))
			if i := bytes.IndexByte(b[:n], escape); i >= 0 {
				n = i
			}
			g.mark = append(g.mark, b[:n]...)
			b = b[n:]
			if len(g.mark) == markSize {
				g.marking = false
				if err := g.marked(); err != nil {
					return err
				}
			}
		default:
			n := bytes.IndexByte(b, escape)
			if n < 0 {
				n = len(b)
			}
			g.deliver(b[:n])
			b = b[n:]
		}
	}
	return nil
}

// deliver passes bytes to the session. Without a session they are stale and discarded.
func (g *guestLink) deliver(b []byte) {
	if g.session != nil && len(b) > 0 {
		// An error means that the session has ended from within: the bytes are dropped.
		_, _ = g.session.feed.Write(b)
	}
}

func (g *guestLink) marked() error {
	kind, nonce, ok := parseMark(g.mark)
	if !ok {
		return nil
	}
	switch {
	case kind == markHello && nonce != g.nonce:
		g.endSession()
		g.nonce = nonce
		return g.answer(markReady)
	case kind == markStart && nonce == g.nonce && g.session == nil:
		if err := g.answer(markBegun); err != nil {
			return err
		}
		r, w := io.Pipe()
		s := &guestStream{link: g, PipeReader: r, feed: w}
		g.session = s
		g.running.Go(func() { g.serve(s) })
	}
	return nil
}

func (g *guestLink) answer(kind byte) error {
	g.writing.Lock()
	defer g.writing.Unlock()
	if _, err := g.port.Write(markFrame(kind, g.nonce)); err != nil {
		return fmt.Errorf("answer the host: %w", err)
	}
	return nil
}

// hangUp ends the session. It keeps the nonce: the host that has disconnected may be the previous one.
func (g *guestLink) hangUp() {
	g.endSession()
	g.escaped, g.marking = false, false
}

func (g *guestLink) endSession() {
	if g.session == nil {
		return
	}
	g.session.mu.Lock()
	g.session.closed = true
	g.session.mu.Unlock()
	g.session.feed.Close()
	g.session = nil
}

// guestStream is the guest's end of one session.
type guestStream struct {
	*io.PipeReader
	link *guestLink
	feed *io.PipeWriter

	mu     sync.Mutex
	closed bool
}

// Write sends bytes to the host. After the session has ended it fails.
func (s *guestStream) Write(p []byte) (int, error) {
	s.link.writing.Lock()
	defer s.link.writing.Unlock()
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return 0, io.ErrClosedPipe
	}
	return s.link.port.Write(p)
}

// Close ends the session from the guest's side.
func (s *guestStream) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	return s.PipeReader.Close()
}
