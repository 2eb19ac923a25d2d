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

// Options of a Client. The zero value is usable.
type Options struct {
	Logger *slog.Logger // nil: nothing is logged
	// MaxMessage is the largest message in bytes that is sent or accepted. 0 is
	// [DefaultMaxMessage]; it is never unbounded.
	MaxMessage int
	// Windows expects the agent of a Windows guest instead of one of a Linux guest. Of the requests, Modify works with
	// it, Exec does not.
	Windows bool
	// TimeZone is sent to a Windows guest; if nil, the guest keeps its own.
	TimeZone *hcsschema.TimeZoneInformation
}

// Client is the host's end of a bridge to one guest. All methods may be called concurrently; each returns when its
// context ends.
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
	abandoned map[uint64]func(payload []byte) // called with the late response; may be nil
	created   map[string]*container           // containers that this Client has created
	err       error
	done      chan struct{}

	running sync.WaitGroup // reader and writer of the bridge, and tidy
}

// Connect creates a Client over a byte stream to our agent: the socket of a virtio-serial port, or a connection of
// [DialVSock].
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

// NewClient creates a Client over a bridge connection and negotiates the protocol. The Client owns bridge and t; they
// are closed on error.
func NewClient(ctx context.Context, bridge net.Conn, t Transport, opts Options) (*Client, error) {
	c := &Client{
		log: logger(opts.Logger), limit: maxMessage(opts.MaxMessage), windows: opts.Windows, zone: opts.TimeZone,
		transport: t, conn: bridge,
		out: make(chan *call, 64), calls: map[uint64]*call{}, abandoned: map[uint64]func([]byte){},
		created: map[string]*container{}, done: make(chan struct{}),
	}
	c.nextPort.Store(PortStdio)
	c.requests = c.limit
	// Random, so that a guest's late response to a request of an earlier bridge does not match one of ours.
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
		os = "windows" // agents of Windows do not say
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

// announce sends Create and Start for the VM itself, if the guest has asked for them. Linux guests do not.
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

// hostConfig is the host's configuration for a Windows guest.
type hostConfig struct {
	SystemType          string
	TimeZoneInformation *hcsschema.TimeZoneInformation `json:",omitempty"`
}

// Done returns a channel that is closed when the bridge is closed.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns nil until Done is closed, then why the bridge was closed; that error matches ErrClosed.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close closes the bridge and the transport. Pending calls fail with ErrClosed. The guest keeps its state, and
// processes keep running. After Close nothing is logged; a process's output may still be being written, see
// [Process.Close].
func (c *Client) Close() error {
	c.fail(nil)
	c.running.Wait()
	return nil
}

// tidy runs f in the background; Close waits for it. It does nothing if the bridge is closed.
func (c *Client) tidy(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.running.Go(f)
	}
}

// fail closes the bridge with a reason and releases all callers. If the guest violated the transport's protocol, that
// is the reason instead.
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
	// In this order: closing the transport unblocks writes to a guest that does not read.
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
