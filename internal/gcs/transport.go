package gcs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// Transport is how a host reaches the ports of one guest. The guest dials; the host listens.
type Transport interface {
	// Listen listens for connections of the guest to a port. If the port is in use the error matches ErrPortTaken.
	Listen(port uint32) (net.Listener, error)
	// Close closes the transport with all its connections, and waits for its goroutines.
	Close() error
}

// ErrPortTaken: the port is in use.
var ErrPortTaken = errors.New("port is taken")

// dialHeader is how long a guest may take to send the port of a new stream.
const dialHeader = 10 * time.Second

// maxUnrouted bounds the streams whose port has not been received yet.
const maxUnrouted = 64

func muxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	// A guest may be stopped for a while: timeouts are up to callers, and the connection breaks if the VM ends.
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout = 24 * time.Hour
	c.StreamOpenTimeout = 0
	// A stream closed by one end lives until the other has read all of it, however long that takes: the reader may be a
	// pager. letGo bounds the streams that nobody reads.
	c.StreamCloseTimeout = 0
	c.AcceptBacklog = maxUnrouted
	c.LogOutput, c.Logger = nil, log.New(io.Discard, "", 0) // the end of the session reports errors
	return c
}

// muxTransport serves the ports of a guest over one stream.
type muxTransport struct {
	session *yamux.Session
	log     *slog.Logger
	running sync.WaitGroup // accept, route and sweep
	ended   chan struct{}  // closed when the session has ended
	why     error          // valid then

	mu        sync.Mutex
	listeners map[uint32]*muxListener
	closed    bool
	going     []*muxConn // closed by the host, see letGo
}

func newMuxTransport(conn io.ReadWriteCloser, log *slog.Logger,
	first ...uint32) (*muxTransport, []net.Listener, error) {
	t := &muxTransport{log: log, listeners: map[uint32]*muxListener{}, ended: make(chan struct{})}
	var listeners []net.Listener
	for _, port := range first { // before the guest can dial them
		l, err := t.Listen(port)
		if err != nil {
			return nil, nil, err
		}
		listeners = append(listeners, l)
	}
	session, err := yamux.Server(conn, muxConfig())
	if err != nil {
		return nil, nil, err
	}
	t.session = session
	t.running.Go(t.accept)
	return t, listeners, nil
}

func (t *muxTransport) accept() {
	slots := make(chan struct{}, maxUnrouted)
	for {
		stream, err := t.session.AcceptStream()
		if err != nil {
			t.why = err
			close(t.ended)
			_ = t.end() // it has ended already
			return
		}
		conn := &muxConn{Stream: stream, t: t}
		select {
		case slots <- struct{}{}:
			t.running.Go(func() {
				defer func() { <-slots }()
				t.route(conn)
			})
		default:
			conn.Close()
		}
	}
}

// violation returns the error if the guest has ended the session by violating the multiplexer's protocol, else nil.
func (t *muxTransport) violation() error {
	if !t.session.IsClosed() {
		return nil
	}
	<-t.ended // closed soon after the session
	for _, err := range []error{yamux.ErrInvalidVersion, yamux.ErrInvalidMsgType, yamux.ErrRecvWindowExceeded,
		yamux.ErrDuplicateStream, yamux.ErrUnexpectedFlag} {
		if errors.Is(t.why, err) {
			return fmt.Errorf("%w: in the frames of its streams: %w", ErrProtocol, err)
		}
	}
	return nil
}

func (t *muxTransport) route(stream *muxConn) {
	var raw [4]byte
	_ = stream.SetReadDeadline(time.Now().Add(dialHeader))
	if _, err := io.ReadFull(stream, raw[:]); err != nil {
		stream.Close()
		return
	}
	_ = stream.SetReadDeadline(time.Time{})
	port := binary.LittleEndian.Uint32(raw[:])
	t.mu.Lock()
	l := t.listeners[port]
	t.mu.Unlock()
	if l == nil || !l.offer(stream) {
		t.log.Debug("guest dialled a port nobody listens on", "port", port)
		stream.Close()
	}
}

// Listen implements Transport.
func (t *muxTransport) Listen(port uint32) (net.Listener, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, net.ErrClosed
	}
	if t.listeners[port] != nil {
		return nil, fmt.Errorf("port %d: %w", port, ErrPortTaken)
	}
	l := &muxListener{t: t, port: port, conns: make(chan net.Conn, 4), done: make(chan struct{})}
	t.listeners[port] = l
	return l, nil
}

// Close implements Transport.
func (t *muxTransport) Close() error {
	err := t.end()
	t.running.Wait()
	return err
}

// end is Close without waiting for the transport's goroutines, which call it too.
func (t *muxTransport) end() error {
	t.mu.Lock()
	t.closed = true
	listeners := t.listeners
	t.listeners = map[uint32]*muxListener{}
	t.mu.Unlock()
	for _, l := range listeners {
		l.end()
	}
	return t.session.Close()
}

type muxListener struct {
	t     *muxTransport
	port  uint32
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *muxListener) offer(c net.Conn) bool {
	select {
	case <-l.done:
		return false
	default:
	}
	select {
	case l.conns <- c:
		return true
	default:
		return false
	}
}

func (l *muxListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *muxListener) end() { l.once.Do(func() { close(l.done) }) }

// Close stops listening and closes connections that were not accepted.
func (l *muxListener) Close() error {
	l.t.mu.Lock()
	if l.t.listeners[l.port] == l {
		delete(l.t.listeners, l.port)
	}
	l.t.mu.Unlock()
	l.end()
	for {
		select {
		case c := <-l.conns:
			c.Close()
		default:
			return nil
		}
	}
}

func (l *muxListener) Addr() net.Addr { return portAddr(l.port) }

type portAddr uint32

func (portAddr) Network() string  { return "gcs" }
func (p portAddr) String() string { return fmt.Sprintf("port %d", uint32(p)) }

// acceptOne accepts a single connection, or fails when ctx ends, and closes the listener.
func acceptOne(ctx context.Context, l net.Listener) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer l.Close()
	c, err := l.Accept()
	if !stop() && err == nil {
		c.Close()
		err = context.Cause(ctx)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return c, err
}

// GuestMux is the guest's end of a multiplexed session.
type GuestMux struct{ session *yamux.Session }

// NewGuestMux runs the multiplexer over a session of ServePort. It owns the stream.
func NewGuestMux(stream io.ReadWriteCloser) (*GuestMux, error) {
	s, err := yamux.Client(stream, muxConfig())
	if err != nil {
		return nil, err
	}
	return &GuestMux{s}, nil
}

// Dial connects to a port of the host. It does not wait until the host has accepted: if nothing listens on the port,
// the first read fails.
func (m *GuestMux) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s, err := m.session.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("dial host port %d: %w", port, err)
	}
	if _, err := s.Write(binary.LittleEndian.AppendUint32(nil, port)); err != nil {
		s.Close()
		return nil, fmt.Errorf("dial host port %d: %w", port, err)
	}
	return s, nil
}

// Close ends the session with all its connections.
func (m *GuestMux) Close() error { return m.session.Close() }
