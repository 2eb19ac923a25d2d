package gcs

import (
	"errors"
	"io"
	"net"
	"sync"
)

// Sockets returns the transport for guests that connect to sockets of the host, such as hvsock. listen listens on the
// socket of a port.
func Sockets(listen func(port uint32) (net.Listener, error)) Transport {
	return &sockets{listen: listen, open: map[io.Closer]struct{}{}}
}

// sockets keeps open listeners and connections, so that Close can close them.
type sockets struct {
	listen func(port uint32) (net.Listener, error)

	mu     sync.Mutex
	open   map[io.Closer]struct{}
	closed bool
}

// Listen implements Transport.
func (t *sockets) Listen(port uint32) (net.Listener, error) {
	l, err := t.listen(port)
	if err != nil {
		return nil, err
	}
	s := &socketListener{l, t}
	if !t.keep(s) {
		return nil, errors.Join(net.ErrClosed, l.Close())
	}
	return s, nil
}

// keep registers something for Close; it returns false if Close was called before.
func (t *sockets) keep(c io.Closer) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.open[c] = struct{}{}
	return true
}

func (t *sockets) drop(c io.Closer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, c)
}

// Close implements Transport.
func (t *sockets) Close() error {
	t.mu.Lock()
	open := t.open
	t.open, t.closed = nil, true
	t.mu.Unlock()
	var errs []error
	for c := range open {
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

type socketListener struct {
	net.Listener
	t *sockets
}

func (l *socketListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	s := &socketConn{c, l.t}
	if !l.t.keep(s) {
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	return s, nil
}

func (l *socketListener) Close() error {
	l.t.drop(l)
	return l.Listener.Close()
}

type socketConn struct {
	net.Conn
	t *sockets
}

// CloseWrite closes the writing direction.
func (c *socketConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

func (c *socketConn) Close() error {
	c.t.drop(c)
	return c.Conn.Close()
}
