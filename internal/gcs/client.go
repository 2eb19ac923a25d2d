package gcs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/stratavm/strata/hcsschema"
)

// Options of a Client. The zero value is good.
type Options struct {
	Logger *slog.Logger // nil: nothing is logged
	// MaxMessage is the largest message in bytes that is sent or accepted. 0 is
	// [DefaultMaxMessage]; it is never unbounded.
	MaxMessage int
	// Windows expects the agent of a Windows guest instead of one of a Linux guest. What it is asked
	// for has to fit: Modify does, Exec does not.
	Windows bool
	// TimeZone is what a Windows guest is told; nil: nothing, and it keeps its own.
	TimeZone *hcsschema.TimeZoneInformation
}

// Client is the host's end of a bridge to one guest. All methods may be called concurrently; each
// ends with its context.
type Client struct {
	log       *slog.Logger
	limit     int // of answers
	requests  int // limit of requests
	windows   bool
	zone      *hcsschema.TimeZoneInformation
	transport Transport
	conn      net.Conn
	caps      Capabilities
	nextPort  atomic.Uint32
	out       chan *call

	mu        sync.Mutex
	firstID   uint64
	nextID    uint64
	calls     map[uint64]*call
	abandoned map[uint64]func(payload []byte) // what to do when the late answer comes; may be nil
	created   map[string]*container           // those this Client has made known
	err       error
	done      chan struct{}

	running sync.WaitGroup // the two ends of the bridge, and what is tidied up
}

// Connect creates a Client over a byte stream to our agent: the socket of a virtio-serial port, or what
// [DialVSock] gives.
// It waits until the agent is there, or ctx ends. It takes conn over and closes it on failure.
func Connect(ctx context.Context, conn net.Conn, opts Options) (*Client, error) {
	r, err := hostHandshake(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to the guest: %w", err)
	}
	t, listeners, err := newMuxTransport(&hostStream{conn, r}, logger(opts.Logger), PortBridge)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to the guest: %w", err)
	}
	bridge, err := acceptOne(ctx, listeners[0])
	if err != nil {
		err = cmp.Or(t.violation(), err)
		t.Close()
		return nil, fmt.Errorf("the guest agent did not dial the bridge: %w", err)
	}
	return NewClient(ctx, bridge, t, opts)
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}

// NewClient creates a Client of a bridge connection that exists already and negotiates the protocol.
// It takes bridge and t over and closes them on failure.
func NewClient(ctx context.Context, bridge net.Conn, t Transport, opts Options) (*Client, error) {
	c := &Client{
		log: logger(opts.Logger), limit: maxMessage(opts.MaxMessage), windows: opts.Windows, zone: opts.TimeZone,
		transport: t, conn: bridge,
		out: make(chan *call, 64), calls: map[uint64]*call{}, abandoned: map[uint64]func([]byte){},
		created: map[string]*container{}, done: make(chan struct{}),
	}
	c.nextPort.Store(PortStdio)
	c.requests = c.limit
	// A guest may answer on this bridge what the one before asked: with other ids nobody takes it for ours.
	c.firstID = mathrand.Uint64()
	c.nextID = c.firstID
	c.running.Go(c.write)
	c.running.Go(c.read)
	if err := c.negotiate(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Client) negotiate(ctx context.Context) error {
	req := &NegotiateRequest{MinimumVersion: ProtocolVersion, MaximumVersion: ProtocolVersion}
	var resp NegotiateResponse
	if err := c.call(ctx, TypeNegotiateProtocol, req, &resp, nil); err != nil {
		return err
	}
	if resp.Version != ProtocolVersion {
		return fmt.Errorf("%w: it chose protocol version %d, only %d was offered",
			ErrProtocol, resp.Version, ProtocolVersion)
	}
	want := "linux"
	if c.windows {
		want = "windows"
	}
	os := resp.Capabilities.RuntimeOsType
	if os == "" {
		os = "windows" // agents that do not say are those of Windows
	}
	if !strings.EqualFold(os, want) {
		return fmt.Errorf("negotiate: the guest's system is %q, wanted is %s: %w", printable(os), want, ErrUnsupported)
	}
	c.caps = resp.Capabilities
	if own := c.caps.GuestDefinedCapabilities; own.StrataAgent > 0 {
		c.requests = max(c.limit, int(min(own.StrataMaxRequest, LargestMaxMessage)))
	}
	return c.announce(ctx)
}

// announce tells a guest that wants to know that its VM is created and started. Linux guests never do.
func (c *Client) announce(ctx context.Context) error {
	base := RequestBase{ContainerId: NullContainer}
	if c.caps.SendHostCreateMessage {
		config, err := EncodeText(hostConfig{SystemType: "Container", TimeZoneInformation: c.zone})
		if err != nil {
			return err
		}
		req := &hostCreateRequest{RequestBase: base, ContainerConfig: config}
		if err := c.call(ctx, TypeCreate, req, &EmptyResponse{}, nil); err != nil {
			return err
		}
	}
	if c.caps.SendHostStartMessage {
		return c.call(ctx, TypeStart, &EmptyRequest{base}, &EmptyResponse{}, nil)
	}
	return nil
}

// hostCreateRequest is the Create that stands for the VM itself.
type hostCreateRequest struct {
	RequestBase
	ContainerConfig Text // a hostConfig
}

// hostConfig says what a Windows guest is to know of its host.
type hostConfig struct {
	SystemType          string
	TimeZoneInformation *hcsschema.TimeZoneInformation `json:",omitempty"`
}

// Done is closed when the bridge is gone.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is nil while the bridge lives; after Done it tells why it ended and matches ErrClosed.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the bridge and the transport. Calls under way fail with ErrClosed. The guest keeps its
// state, and processes run on. When it returns nothing is logged any more; output that a process's writer
// is still taking is the business of [Process.Close].
func (c *Client) Close() error {
	c.fail(nil)
	c.running.Wait()
	return nil
}

// tidy runs f, which Close waits for. After the end of the bridge nothing can be tidied up.
func (c *Client) tidy(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.running.Go(f)
	}
}

// fail ends the bridge with a reason and releases all callers. Where the guest broke the protocol of the transport,
// that is the reason.
func (c *Client) fail(reason error) {
	if t, ok := c.transport.(interface{ violation() error }); ok && reason != nil && !errors.Is(reason, ErrProtocol) {
		if v := t.violation(); v != nil {
			reason = v
		}
	}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = ErrClosed
	if reason != nil {
		c.err = fmt.Errorf("%w (%w)", reason, ErrClosed)
		c.log.Debug("bridge to the guest ended", "err", reason)
	}
	close(c.done)
	c.mu.Unlock()
	// In this order: ending the transport releases whoever writes to a guest that does not read.
	c.transport.Close()
	c.conn.Close()
}

func (c *Client) write() {
	for {
		select {
		case <-c.done:
			return
		case call := <-c.out:
			if !call.sent.CompareAndSwap(callQueued, callWriting) {
				continue
			}
			if _, err := c.conn.Write(call.frame); err != nil {
				c.fail(fmt.Errorf("send %v: %w", call.typ, err))
				return
			}
		}
	}
}

func (c *Client) read() {
	for {
		h, payload, err := ReadMessage(c.conn, c.limit)
		switch {
		case errors.Is(err, io.EOF):
			err = errors.New("the guest hung up")
		case errors.Is(err, ErrFraming):
			err = fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		if err == nil {
			err = c.dispatch(h, payload)
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

func (c *Client) dispatch(h Header, payload []byte) error {
	if h.Type == TypeNotification {
		var n Notification
		if err := json.Unmarshal(payload, &n); err != nil {
			return fmt.Errorf("%w: notification: %w", ErrProtocol, err)
		}
		c.log.Debug("container ended", "container", printable(n.ContainerId), "type", printable(n.Type))
		return nil
	}
	if !h.Type.IsResponse() {
		return fmt.Errorf("%w: it sent a %v", ErrProtocol, h.Type)
	}
	c.mu.Lock()
	call := c.calls[h.ID]
	late, abandoned := c.abandoned[h.ID]
	issued := h.ID-c.firstID < c.nextID-c.firstID
	delete(c.calls, h.ID)
	delete(c.abandoned, h.ID)
	c.mu.Unlock()
	switch {
	case call != nil && h.Type == call.typ.Response():
		call.answer <- payload
	case call != nil:
		return fmt.Errorf("%w: the answer to %v is a %v", ErrProtocol, call.typ, h.Type)
	case abandoned:
		if late != nil {
			c.tidy(func() { late(payload) })
		}
	case !issued:
		c.log.Debug("an answer to a request of an earlier bridge", "id", h.ID, "type", h.Type)
	default:
		return fmt.Errorf("%w: an answer to request %d, which is not outstanding", ErrProtocol, h.ID)
	}
	return nil
}
