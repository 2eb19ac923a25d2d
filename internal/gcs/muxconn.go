package gcs

import (
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

// maxLetGo bounds the streams that the host has closed and the guest has not.
const maxLetGo = 512

// sweepInterval is how often such streams are drained.
const sweepInterval = 100 * time.Millisecond

// drainReads bounds the reads of one stream before the next one is drained.
const drainReads = 16

// muxConn is the host's end of a stream. Unlike Close of a yamux stream, which only half-closes it and has to send
// that, Close closes both directions and never blocks on the guest.
type muxConn struct {
	*yamux.Stream
	t       *muxTransport
	reading sync.Mutex // held for each read
	closed  atomic.Bool
}

// Read returns net.ErrClosed after Close.
func (c *muxConn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	n, err := c.Stream.Read(p)
	if err != nil && c.closed.Load() {
		err = net.ErrClosed
	}
	return n, err
}

// CloseWrite closes the writing direction. It blocks until that is sent.
func (c *muxConn) CloseWrite() error { return c.Stream.Close() }

// Close implements net.Conn.
func (c *muxConn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	_ = c.SetReadDeadline(time.Unix(1, 0)) // ends a read under way
	c.t.letGo(c)
	return nil
}

// letGo discards what still arrives on a stream until the guest closes it or the session ends: so it takes no memory,
// and the guest's process does not block for ever.
func (t *muxTransport) letGo(c *muxConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.going = append(t.going, c)
	switch {
	case len(t.going) > maxLetGo && !t.closed:
		t.log.Warn("the guest keeps streams that nobody wants, its connection is closed", "streams", len(t.going))
		t.running.Go(func() { _ = t.end() }) // not here: t.mu is held
	case len(t.going) == 1 && !t.closed:
		t.running.Go(t.sweep)
	}
}

// sweep drains the streams of letGo in turn, until there are none. One goroutine does so for all, because all readers
// of a session that ends spin until each has been told.
func (t *muxTransport) sweep() {
	buf := make([]byte, 32<<10) // drainReads of them are more than the window of 256 KiB
	for {
		t.mu.Lock()
		going := slices.Clone(t.going)
		t.mu.Unlock()
		var ended []*muxConn
		for _, c := range going {
			if c.drain(buf) {
				ended = append(ended, c)
			}
		}
		t.mu.Lock()
		t.going = slices.DeleteFunc(t.going, func(c *muxConn) bool { return slices.Contains(ended, c) })
		left := len(t.going)
		t.mu.Unlock()
		if left == 0 {
			return
		}
		select {
		case <-t.session.CloseChan():
			return
		case <-time.After(sweepInterval):
		}
	}
}

// drain reads what has arrived, up to a window, and reports whether the stream has ended.
func (c *muxConn) drain(buf []byte) bool {
	_ = c.Stream.Close() // idempotent
	c.reading.Lock()
	defer c.reading.Unlock()
	for range drainReads {
		// Does not block: the deadline has passed.
		if _, err := c.Stream.Read(buf); err != nil {
			c.Shrink()
			return !errors.Is(err, yamux.ErrTimeout)
		}
	}
	return false
}
