package gcs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stratavm/strata/vmm"
)

// muxPair is both ends of a session. guest is what the guest's end is made of.
func muxPair(t *testing.T, host, guest io.ReadWriteCloser) (*muxTransport, *GuestMux) {
	t.Helper()
	h, _, err := newMuxTransport(host, logger(nil))
	if err != nil {
		t.Fatal(err)
	}
	g, err := NewGuestMux(guest)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close(); g.Close() })
	return h, g
}

// dialled is a stream that the guest has dialled and the host accepted.
func dialled(t *testing.T, h *muxTransport, g *GuestMux) (host, guest net.Conn) {
	t.Helper()
	l, err := h.Listen(7)
	if err != nil {
		t.Fatal(err)
	}
	if guest, err = g.Dial(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	if host, err = acceptOne(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	return host, guest
}

// TestSlowReader: what was written before the end arrives, however late it is read.
func TestSlowReader(t *testing.T) {
	if d := muxConfig().StreamCloseTimeout; d != 0 { // which a test cannot wait for
		t.Errorf("a stream that is closed is reset after %s, whatever has not been read yet", d)
	}
	for name, ends := range map[string]func(host, guest net.Conn) (from, to net.Conn){
		"output": func(host, guest net.Conn) (from, to net.Conn) { return guest, host },
		"input":  func(host, guest net.Conn) (from, to net.Conn) { return host, guest },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := net.Pipe()
			h, g := muxPair(t, a, b)
			from, to := ends(dialled(t, h, g))
			want := bytes.Repeat([]byte("x"), 200<<10)
			if _, err := from.Write(want); err != nil {
				t.Fatal(err)
			}
			if half, ok := from.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite()
			} else {
				from.Close()
			}
			got, err := io.ReadAll(to)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d of %d bytes arrived, %v", len(got), len(want), err)
			}
		})
	}
}

// TestUnwantedStreams: what a guest sends on streams that nobody listens for fills no memory, and a
// guest that keeps too many of them loses its connection.
func TestUnwantedStreams(t *testing.T) {
	a, b := net.Pipe()
	h, g := muxPair(t, a, b)
	junk := make([]byte, 250<<10)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const many = maxLetGo / 2
	for range many {
		c, err := g.Dial(t.Context(), 9)
		if err == nil {
			_, err = c.Write(junk)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for late := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) { // it is thrown away in the background
		runtime.GC()
		runtime.ReadMemStats(&after)
		grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
		if grown <= many*int64(len(junk))/2 {
			break
		}
		if time.Now().After(late) {
			t.Fatalf("%d streams of %d bytes hold %d bytes", many, len(junk), grown)
		}
	}
	for i := 0; !h.session.IsClosed(); i++ {
		if i > 2*maxLetGo {
			t.Fatalf("the host keeps %d streams", h.session.NumStreams())
		}
		if _, err := g.Dial(context.Background(), 9); err != nil {
			<-h.session.CloseChan() // the session ends
		}
	}
}

// stopped is a guest's end that stops reading, as a VM that is stopped does.
type stopped struct {
	net.Conn
	stop    atomic.Bool
	once    sync.Once
	stopped chan struct{}
	end     chan struct{}
}

func (s *stopped) Read(b []byte) (int, error) {
	if s.stop.Load() {
		s.once.Do(func() { close(s.stopped) })
		<-s.end
		return 0, io.EOF
	}
	return s.Conn.Read(b)
}

// TestCloseOfStoppedGuest: a guest that does not read holds up neither the end of a stream nor that of
// the client. Otherwise this test does not end.
func TestCloseOfStoppedGuest(t *testing.T) {
	a, b := net.Pipe()
	guest := &stopped{Conn: b, stopped: make(chan struct{}), end: make(chan struct{})}
	h, g := muxPair(t, a, guest)
	t.Cleanup(func() { close(guest.end) })
	host, _ := dialled(t, h, g)
	guest.stop.Store(true)
	written := make(chan error)
	go func() {
		for {
			if _, err := host.Write(make([]byte, 64<<10)); err != nil {
				written <- err
				return
			}
		}
	}()
	<-guest.stopped
	host.Close()
	c := &Client{log: logger(nil), transport: h, conn: host, done: make(chan struct{})}
	c.Close()
	if err := <-written; err == nil {
		t.Error("the writer was not told")
	}
}

// TestGarbageFrames: a guest that breaks the protocol of the streams is named for it; one that hangs up is not.
func TestGarbageFrames(t *testing.T) {
	windowUpdate := []byte{0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0}
	for name, tt := range map[string]struct {
		sends []byte // nil: it hangs up
		broke bool
	}{
		"version":      {bytes.Repeat([]byte{0xff}, 12), true},
		"message type": {append([]byte{0, 0x77}, make([]byte, 10)...), true},
		"window":       {[]byte{0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 0xff, 0xff, 0xff}, true},
		"stream twice": {append([]byte{0, 1, 0, 1}, windowUpdate[4:]...), true},
		"hangs up":     {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			check := func(err error) {
				t.Helper()
				if errors.Is(err, vmm.ErrProtocol) != tt.broke || strings.Contains(err.Error(), "does not answer") {
					t.Errorf("got %v", err)
				}
			}
			a, b := net.Pipe()
			h, g := muxPair(t, a, b)
			host, guest := dialled(t, h, g)
			c := &Client{log: logger(nil), transport: h, conn: host, done: make(chan struct{}), limit: DefaultMaxMessage,
				calls: map[uint64]*call{}, abandoned: map[uint64]func([]byte){}, out: make(chan *call)}
			c.running.Go(c.read)
			c.running.Go(c.write)
			if _, err := guest.Write([]byte{1}); err != nil { // the stream is under way
				t.Fatal(err)
			}
			if tt.sends != nil {
				_, _ = b.Write(tt.sends)
			} else {
				b.Close()
			}
			<-c.Done()
			check(c.Err())
			c.Close()
		})
	}
}

// TestCutOffOutput: output that ends before its end is an error of Wait.
func TestCutOffOutput(t *testing.T) {
	c, _ := against(t, func(h Header, _ []byte) []byte { return answer(t, h, &WaitResponse{ExitCode: 3}) })
	ours, theirs := net.Pipe()
	var out bytes.Buffer
	p := &Process{c: c, pid: 7, done: make(chan struct{})}
	p.run(vmm.ProcessSpec{Stdout: &out}, [3]net.Conn{1: &reset{ours}})
	go func() { _, _ = theirs.Write([]byte("ab")); theirs.Close() }()
	if code, err := p.Wait(t.Context()); code != 3 || !errors.Is(err, errReset) || out.String() != "ab" {
		t.Errorf("%d %v, output %q", code, err, out.String())
	}
}

var errReset = errors.New("connection reset")

// reset is a connection that ends with a reset.
type reset struct{ net.Conn }

func (r *reset) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	if err != nil {
		err = errReset
	}
	return n, err
}
