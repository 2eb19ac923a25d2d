package standin

import (
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
)

// Hyper-V sockets, which Wine lacks: a program listens on a port of the loopback interface instead and
// tells the server, which connects to it whatever guests dial.

// Listen listens on a Hyper-V socket service for connections from the VM with a runtime identity. It
// takes the place of hcs.Listen.
func (c *Client) Listen(runtimeID, serviceID string) (net.Listener, error) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	conn, err := net.Dial("tcp4", c.addr)
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	_, err = ask(conn, order{Op: "listen", Name: runtimeID, Service: serviceID, Port: ln.Addr().(*net.TCPAddr).Port})
	if err != nil {
		return nil, errors.Join(err, ln.Close(), conn.Close())
	}
	return &listener{Listener: ln, conn: conn}, nil
}

// listener ends what was told to the server together with itself.
type listener struct {
	net.Listener
	conn net.Conn
	once sync.Once
	err  error
}

func (l *listener) Close() error {
	l.once.Do(func() {
		l.err = l.Listener.Close()
		// The server closes its end when it does not listen any more.
		if half, ok := l.conn.(*net.TCPConn); ok && half.CloseWrite() == nil {
			io.Copy(io.Discard, l.conn)
		}
		l.err = errors.Join(l.err, l.conn.Close())
	})
	return l.err
}

// listen connects what guests dial to the port of a program, until c ends.
func (w *world) listen(c net.Conn, o order) error {
	ln, err := w.sockets.Listen(o.Name, o.Service)
	if err != nil {
		return reply(c, report{Error: err.Error()})
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer c.Close()
	defer ln.Close()
	wg.Go(func() {
		for {
			guest, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { join(guest, net.JoinHostPort("127.0.0.1", strconv.Itoa(o.Port))) })
		}
	})
	if err := reply(c, report{}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, c)
	return err
}

// join moves bytes between a guest and a program until both have ended their halves, or one is gone.
func join(guest net.Conn, addr string) {
	defer guest.Close()
	program, err := net.Dial("tcp4", addr)
	if err != nil {
		return
	}
	defer program.Close()
	var wg sync.WaitGroup
	for _, pair := range [][2]net.Conn{{guest, program}, {program, guest}} {
		wg.Go(func() {
			_, err := io.Copy(pair[0], pair[1])
			if half, ok := pair[0].(interface{ CloseWrite() error }); ok && err == nil {
				err = half.CloseWrite()
			} else {
				pair[0].Close()
			}
			if err != nil {
				pair[0].Close()
				pair[1].Close()
			}
		})
	}
	wg.Wait()
}
