package gcs

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/mdlayher/vsock"
)

// VSock is the transport to the guest with context id cid over AF_VSOCK. Ports are the host's, not the
// guest's: two guests of one host cannot be awaited on the same port at the same time, and
// connections from other guests are turned away.
func VSock(cid uint32) Transport {
	return Sockets(func(port uint32) (net.Listener, error) {
		l, err := vsock.Listen(port, nil)
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("vsock port %d: %w: %w", port, ErrPortTaken, err)
		}
		if err != nil {
			return nil, fmt.Errorf("listen on vsock port %d: %w", port, err)
		}
		return &vsockListener{l, cid}, nil
	})
}

// vsockListener lets only its own guest in.
type vsockListener struct {
	net.Listener
	cid uint32
}

func (l *vsockListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if a, ok := c.RemoteAddr().(*vsock.Addr); ok && a.ContextID == l.cid {
			return c, nil
		}
		c.Close()
	}
}
