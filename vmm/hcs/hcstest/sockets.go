package hcstest

import (
	"errors"
	"fmt"
	"net"
	"sync"
)

// Sockets are Hyper-V sockets in memory: hosts listen, guests dial.
type Sockets struct {
	mu        sync.Mutex
	listeners map[string]*listener
}

// NewSockets returns sockets that nobody listens on.
func NewSockets() *Sockets { return &Sockets{listeners: map[string]*listener{}} }

type listener struct {
	s    *Sockets
	addr string
	ch   chan net.Conn
	done chan struct{}

	mu     sync.Mutex
	closed bool
}

// Listen has the shape of hcs.Host.Listen.
func (s *Sockets) Listen(runtimeID, serviceID string) (net.Listener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &listener{s: s, addr: runtimeID + ":" + serviceID, ch: make(chan net.Conn, backlog), done: make(chan struct{})}
	if s.listeners[l.addr] != nil {
		return nil, fmt.Errorf("listen on %s: address in use", l.addr)
	}
	s.listeners[l.addr] = l
	return l, nil
}

// backlog is how many connections may be made before the first is accepted.
const backlog = 4

// Dial connects to who listens for the VM on the service. It does not wait for the connection to be accepted.
func (s *Sockets) Dial(runtimeID, serviceID string) (net.Conn, error) {
	s.mu.Lock()
	l := s.listeners[runtimeID+":"+serviceID]
	s.mu.Unlock()
	if l == nil {
		return nil, errors.New("connection refused")
	}
	ours, theirs := net.Pipe()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.ch) == cap(l.ch) {
		return nil, errors.New("connection refused")
	}
	l.ch <- theirs
	return ours, nil
}

// Listening reports how many listeners there are.
func (s *Sockets) Listening() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.listeners)
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	close(l.done)
	l.s.mu.Lock()
	delete(l.s.listeners, l.addr)
	l.s.mu.Unlock()
	for {
		select {
		case c := <-l.ch:
			c.Close()
		default:
			return nil
		}
	}
}

func (l *listener) Addr() net.Addr { return addr(l.addr) }

type addr string

func (addr) Network() string  { return "hvsock" }
func (a addr) String() string { return string(a) }
