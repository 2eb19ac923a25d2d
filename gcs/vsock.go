package gcs

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"

	"github.com/mdlayher/vsock"
)

// VSock is the transport to the guest with context id cid over AF_VSOCK. Ports are the host's, not the
// guest's: two guests of one host cannot be awaited on the same port at the same time, and
// connections from other guests are turned away.
func VSock(cid uint32) Transport {
	return &vsockTransport{cid: cid, open: map[net.Listener]struct{}{}}
}

type vsockTransport struct {
	cid  uint32
	mu   sync.Mutex
	open map[net.Listener]struct{}
}

func (t *vsockTransport) Listen(port uint32) (net.Listener, error) {
	l, err := vsock.Listen(port, nil)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("vsock port %d: %w: %w", port, ErrPortTaken, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, err)
	}
	f := &vsockListener{Listener: l, t: t}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open[f] = struct{}{}
	return f, nil
}

func (t *vsockTransport) Close() error {
	t.mu.Lock()
	open := t.open
	t.open = map[net.Listener]struct{}{}
	t.mu.Unlock()
	var errs []error
	for l := range open {
		errs = append(errs, l.(*vsockListener).Listener.Close())
	}
	return errors.Join(errs...)
}

// vsockListener lets only its own guest in.
type vsockListener struct {
	net.Listener
	t *vsockTransport
}

func (l *vsockListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if a, ok := c.RemoteAddr().(*vsock.Addr); ok && a.ContextID == l.t.cid {
			return c, nil
		}
		c.Close()
	}
}

func (l *vsockListener) Close() error {
	l.t.mu.Lock()
	delete(l.t.open, l)
	l.t.mu.Unlock()
	return l.Listener.Close()
}
