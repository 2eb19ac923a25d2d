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

// maxLetGo bounds the streams that the host is through with and the guest is not.
const maxLetGo = 512

// sweepInterval is how often such streams are looked at.
const sweepInterval = 100 * time.Millisecond

// drainReads bounds the reads of one stream before it is another's turn.
const drainReads = 16

// muxConn is the host's end of a stream. Close releases both directions and never waits for the guest,
// which may have stopped: a stream itself knows only a half-close, which has to be sent.
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

// CloseWrite tells the guest that no more bytes come. It waits until that is sent.
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

// letGo takes what still comes on a stream and throws it away, until the guest is through with it too or
// the session ends: so it fills nobody's memory, and the guest's process is not held up for ever.
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

// sweep drains the streams that were given up, until there are none. They are looked at in turn, because
// all readers of a session that ends spin until it has told each of them.
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

// drain reads what there is, up to a window. It reports whether that was the end.
func (c *muxConn) drain(buf []byte) bool {
	_ = c.Stream.Close() // the second time it does nothing
	c.reading.Lock()
	defer c.reading.Unlock()
	for range drainReads {
		// The deadline is over: it does not wait.
		if _, err := c.Stream.Read(buf); err != nil {
			c.Shrink()
			return !errors.Is(err, yamux.ErrTimeout)
		}
	}
	return false
}
