package gcsserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver/servertest"
	"github.com/stratavm/strata/vmm"
)

// wire is a byte stream with two ends, like a virtio-serial port: the guest keeps its end while hosts
// come and go, and what one host left unread is still there for the next.
type wire struct {
	mu     sync.Mutex
	cond   *sync.Cond
	down   []byte // to the guest
	up     []byte // to the host
	host   *wireHost
	hangUp bool // the guest has not heard of the host's end yet
	broken bool
}

type wireHost struct {
	net.Conn // for the methods that are not used
	w        *wire
	budget   int // bytes until the host vanishes; negative: never
}

func newWire() *wire {
	w := &wire{}
	w.cond = sync.NewCond(&w.mu)
	return w
}

func (w *wire) connect(budget int) *wireHost {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.host = &wireHost{w: w, budget: budget}
	w.cond.Broadcast()
	return w.host
}

// spend takes n bytes off the budget and returns what there was; the host vanishes at 0.
func (h *wireHost) spend(n int) int {
	if h.budget < 0 {
		return n
	}
	n = min(n, h.budget)
	if h.budget -= n; h.budget == 0 {
		h.vanish()
	}
	return n
}

func (h *wireHost) vanish() {
	if h.w.host == h {
		h.w.host, h.w.hangUp = nil, rand.IntN(2) == 0 // the guest may miss that there was nobody
		h.w.cond.Broadcast()
	}
}

func (h *wireHost) Read(p []byte) (int, error) {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	for h.w.host == h && len(h.w.up) == 0 {
		h.w.cond.Wait()
	}
	if h.w.host != h {
		return 0, io.EOF
	}
	n := h.spend(copy(p, h.w.up))
	h.w.up = h.w.up[n:]
	h.w.cond.Broadcast()
	return n, nil
}

func (h *wireHost) Write(p []byte) (int, error) {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if h.w.host != h {
		return 0, io.ErrClosedPipe
	}
	n := h.spend(len(p))
	h.w.down = append(h.w.down, p[:n]...)
	h.w.cond.Broadcast()
	if n < len(p) {
		return n, io.ErrClosedPipe
	}
	return n, nil
}

func (h *wireHost) Close() error {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.vanish()
	return nil
}

// Read is the guest's.
func (w *wire) Read(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		switch {
		case len(w.down) > 0:
			n := copy(p, w.down)
			w.down = w.down[n:]
			return n, nil
		case w.hangUp:
			w.hangUp = false
			return 0, io.EOF
		case w.broken:
			return 0, net.ErrClosed
		}
		w.cond.Wait()
	}
}

// Write is the guest's; it waits until the host has read most of what there is.
func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for !w.broken && (w.host == nil || len(w.up) > 64<<10) {
		w.cond.Wait()
	}
	if w.broken {
		return 0, net.ErrClosed
	}
	w.up = append(w.up, p...)
	w.cond.Broadcast()
	return len(p), nil
}

// guestOn serves a runtime on a wire until the test ends.
func guestOn(t *testing.T, w *wire, rt Runtime) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = gcs.ServePort(w, func(s io.ReadWriteCloser) {
			mux, err := gcs.NewGuestMux(s)
			if err != nil {
				s.Close()
				return
			}
			defer mux.Close()
			conn, err := mux.Dial(context.Background(), gcs.PortBridge)
			if err != nil {
				return
			}
			_ = Serve(context.Background(), conn, mux.Dial, rt, log)
		})
	}()
	t.Cleanup(func() {
		w.mu.Lock()
		w.broken = true
		w.cond.Broadcast()
		w.mu.Unlock()
		<-done
	})
}

func connect(t *testing.T, rt Runtime) *gcs.Client {
	t.Helper()
	w := newWire()
	guestOn(t, w, rt)
	c, err := gcs.Connect(t.Context(), w.connect(-1), gcs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func disk(lun uint8, path string) hcsschema.GuestRequest {
	return hcsschema.GuestRequest{RequestType: hcsschema.RequestAdd, ResourceType: hcsschema.ResourceMappedVirtualDisk,
		Settings: hcsschema.LCOWMappedVirtualDisk{MountPath: path, Lun: lun}}
}

func TestModifyAndObserve(t *testing.T) {
	c := connect(t, newMemory())
	const n = 300 // more than fits in one message
	for i := range n {
		if err := c.Modify(t.Context(), disk(uint8(i%64),
			fmt.Sprintf("/run/mounts/scsi/%s/m%03d", strings.Repeat("x", 200), i))); err != nil {
			t.Fatal(err)
		}
	}
	mounts, err := c.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(mounts) != n {
		t.Fatalf("observed %d mounts, want %d", len(mounts), n)
	}
	for i, m := range mounts {
		if m.Lun != uint8(i%64) || m.Kind != "scsi" {
			t.Fatalf("mount %d is %+v", i, m)
		}
	}
}

func TestRefusals(t *testing.T) {
	c := connect(t, newMemory())
	err := c.Modify(t.Context(), disk(0, "/busy"))
	if !errors.Is(err, gcs.ErrBusy) || !strings.Contains(err.Error(), "process 7 (vi)") {
		t.Errorf("busy: %v", err)
	}
	var refusal *gcs.Error
	if !errors.As(err, &refusal) || refusal.Result != gcs.ResultBusy {
		t.Errorf("busy: %#v", refusal)
	}
	err = c.Modify(t.Context(), hcsschema.GuestRequest{RequestType: "Add", ResourceType: "Nonsense", Settings: struct{}{}})
	if !errors.Is(err, gcs.ErrUnsupported) {
		t.Errorf("unknown resource: %v", err)
	}
	err = c.Modify(t.Context(), hcsschema.GuestRequest{RequestType: "Add",
		ResourceType: hcsschema.ResourceMappedVirtualDisk, Settings: []int{1}})
	if !errors.Is(err, gcs.ErrInvalid) {
		t.Errorf("malformed settings: %v", err)
	}
	if err := c.Modify(t.Context(), disk(0, strings.Repeat("x", gcs.LargestMaxMessage))); !errors.Is(err,
		gcs.ErrTooLarge) || !errors.Is(err, gcs.ErrNotSent) {
		t.Errorf("too large: %v", err)
	}
	if err := c.DeleteContainerState(t.Context(), "nobody"); err != nil {
		t.Errorf("delete of an unknown container: %v", err)
	}
	if c.Err() != nil {
		t.Errorf("the bridge died of refusals: %v", c.Err())
	}
}

// TestAbandonedCall: a call that times out costs nothing but itself.
func TestAbandonedCall(t *testing.T) {
	m := newMemory()
	m.hold = make(chan struct{})
	c := connect(t, m)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() { failed <- c.Modify(ctx, disk(1, "/run/a")) }()
	for entered := false; !entered; time.Sleep(time.Millisecond) {
		m.mu.Lock()
		entered = m.requests == 1
		m.mu.Unlock()
	}
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) || errors.Is(err, gcs.ErrNotSent) {
		t.Fatalf("abandoned call: %v", err)
	}
	if _, err := c.Stacks(t.Context()); err != nil {
		t.Fatalf("while a call is abandoned: %v", err)
	}
	type seen struct {
		mounts []gcs.Mount
		err    error
	}
	observed := make(chan seen)
	go func() {
		mounts, err := c.Observe(t.Context())
		observed <- seen{mounts, err}
	}()
	for entered := false; !entered; time.Sleep(time.Millisecond) {
		m.begun.L.Lock()
		entered = m.asked == 1
		m.begun.L.Unlock()
	}
	m.mu.Lock()
	close(m.hold)
	m.hold = nil
	m.mu.Unlock()
	if got := <-observed; got.err != nil || len(got.mounts) != 1 {
		t.Fatalf("mounts %v, %v; the abandoned one takes effect all the same", got.mounts, got.err)
	}
	if err := c.Modify(t.Context(), disk(2, "/run/b")); err != nil {
		t.Fatalf("after the late answer: %v", err)
	}
	if mounts, err := c.Observe(t.Context()); err != nil || len(mounts) != 2 {
		t.Fatalf("mounts %v, %v", mounts, err)
	}
	before, cancelled := context.WithCancel(t.Context())
	cancelled()
	if err := c.Modify(before, disk(3, "/run/c")); !errors.Is(err, gcs.ErrNotSent) {
		t.Fatalf("a call with a context that is over: %v", err)
	}
}

// slowBegin is a runtime whose Begin waits.
type slowBegin struct {
	*memory
	entered, release chan struct{}
}

func (s slowBegin) Begin() (end func()) {
	s.entered <- struct{}{}
	<-s.release
	return s.memory.Begin()
}

// TestOrderOfChanges: what is asked after a change does not come before it is noted.
func TestOrderOfChanges(t *testing.T) {
	s := slowBegin{newMemory(), make(chan struct{}), make(chan struct{})}
	c := connect(t, s)
	changed, seen := make(chan error, 1), make(chan int, 1)
	go func() { changed <- c.Modify(t.Context(), disk(1, "/run/a")) }()
	<-s.entered
	go func() {
		mounts, _ := c.Observe(t.Context())
		seen <- len(mounts)
	}()
	select {
	case n := <-seen:
		t.Errorf("%d mounts, before a change is noted that was asked for before", n)
		close(s.release)
	case <-time.After(50 * time.Millisecond):
		close(s.release)
		if n := <-seen; n != 1 {
			t.Errorf("%d mounts, want 1", n)
		}
	}
	if err := <-changed; err != nil {
		t.Error(err)
	}
}

func TestExec(t *testing.T) {
	c := connect(t, newMemory())
	// The bytes that mean something to the link travel as content, too.
	content := bytes.Repeat([]byte{0xff, 0x01, 'H', 0xff, 0xff, 0x00, 'x'}, 100_000)
	var out bytes.Buffer
	p, err := c.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"cat"}, Stdin: bytes.NewReader(content), Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	if code, err := p.Wait(t.Context()); code != 0 || err != nil {
		t.Fatalf("cat: %d, %v", code, err)
	}
	if !bytes.Equal(out.Bytes(), content) {
		t.Fatalf("cat gave %d bytes of %d, or others", out.Len(), len(content))
	}
	out.Reset()
	p, err = c.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"both"}, Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatal(err)
	}
	if code, err := p.Wait(t.Context()); code != 0 || err != nil || out.Len() != 20_000 {
		t.Fatalf("both: %d, %v, %d bytes in one writer for both outputs", code, err, out.Len())
	}
	p, err = c.Exec(t.Context(), vmm.ProcessSpec{ContainerID: "c", Root: "/run/c", Args: []string{"fail"}})
	if err != nil {
		t.Fatal(err)
	}
	if code, err := p.Wait(t.Context()); code != 3 || err != nil {
		t.Fatalf("fail: %d, %v", code, err)
	}
	if err := p.Signal(t.Context(), 15); err != nil {
		t.Fatalf("signal to a process that has ended: %v", err)
	}
	p, err = c.Exec(t.Context(), vmm.ProcessSpec{ContainerID: "c", Root: "/run/c", Args: []string{"sleep"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(t.Context(), 15); err != nil {
		t.Fatal(err)
	}
	if code, err := p.Wait(t.Context()); code != 143 || err != nil {
		t.Fatalf("sleep: %d, %v", code, err)
	}
	if _, err := c.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"nothing"}, Stdout: &out}); !errors.Is(err,
		gcs.ErrNotFound) {
		t.Fatalf("unknown program: %v", err)
	}
}

func TestShutdown(t *testing.T) {
	m := newMemory()
	c := connect(t, m)
	t.Cleanup(func() { close(m.gone) })
	go func() {
		<-m.off
		c.Close() // as the machine's end does
	}()
	if err := c.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestReconnect: the next host finds processes and their exit codes.
func TestReconnect(t *testing.T) {
	w := newWire()
	guestOn(t, w, newMemory())
	first, err := gcs.Connect(t.Context(), w.connect(-1), gcs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := first.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"sleep"}})
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	if _, err := p.Wait(t.Context()); !errors.Is(err, gcs.ErrClosed) {
		t.Fatalf("wait over a closed bridge: %v", err)
	}
	second, err := gcs.Connect(t.Context(), w.connect(-1), gcs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := second.SignalProcess(t.Context(), "", p.Pid(), 9); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if code, err := second.WaitProcess(t.Context(), "", p.Pid()); code != 137 || err != nil {
			t.Fatalf("exit code after reconnecting: %d, %v", code, err)
		}
	}
	if _, err := second.WaitProcess(t.Context(), "", 999); !errors.Is(err, gcs.ErrNotFound) {
		t.Fatalf("unknown process: %v", err)
	}
}

// TestHostsCutOff lets hosts vanish after any number of bytes, in the handshake and in the middle of
// sessions; a host that stays always gets through.
func TestHostsCutOff(t *testing.T) {
	w := newWire()
	guestOn(t, w, newMemory())
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 150 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if c, err := gcs.Connect(ctx, w.connect(1+r.IntN(1500)), gcs.Options{}); err == nil {
			for i := 0; c.Err() == nil && i < 50; i++ {
				_ = c.Modify(ctx, disk(uint8(i), "/run/x"))
			}
			c.Close()
		}
		if round%5 == 0 {
			c, err := gcs.Connect(ctx, w.connect(-1), gcs.Options{})
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			if err := c.Modify(ctx, disk(1, "/run/y")); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			c.Close()
		}
		cancel()
	}
}

// TestDialFails: a stream port that nobody listens on costs the request, whatever the dialer returns along
// with its error, and nothing else.
func TestDialFails(t *testing.T) {
	refused := errors.New("connection refused")
	for name, dial := range map[string]Dialer{
		"nil":                      func(context.Context, uint32) (net.Conn, error) { return nil, refused },
		"nil pointer in interface": func(context.Context, uint32) (net.Conn, error) { return (*net.TCPConn)(nil), refused },
		"panics":                   func(context.Context, uint32) (net.Conn, error) { panic("a fault of the dialer") },
	} {
		t.Run(name, func(t *testing.T) {
			host, guest := net.Pipe()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_ = Serve(t.Context(), guest, dial, newMemory(), slog.New(slog.DiscardHandler))
			}()
			defer func() { host.Close(); <-ended }()
			b := servertest.New(t, host)
			b.Ask(gcs.TypeNegotiateProtocol, &gcs.NegotiateRequest{MinimumVersion: 4, MaximumVersion: 4})
			text, err := gcs.EncodeText(gcs.ProcessParameters{CommandArgs: []string{"cat"}, CreateStdInPipe: true,
				CreateStdOutPipe: true})
			if err != nil {
				t.Fatal(err)
			}
			exec := &gcs.ExecuteRequest{RequestBase: gcs.RequestBase{ContainerId: gcs.NullContainer},
				Settings: gcs.ExecuteSettings{ProcessParameters: text,
					VsockStdioRelaySettings: &gcs.StdioPorts{StdIn: 7, StdOut: 8}}}
			if resp := b.Ask(gcs.TypeExecuteProcess, exec); resp.Result == gcs.ResultOK {
				t.Error("a process was started without its streams")
			}
			if resp := b.Ask(gcs.TypeDumpStacks, &gcs.EmptyRequest{}); resp.Result != gcs.ResultOK {
				t.Errorf("after that: %+v", resp)
			}
		})
	}
}

func TestCommandLine(t *testing.T) {
	for line, want := range map[string][]string{
		"sh -c ls":               {"sh", "-c", "ls"},
		`sh -c 'a  b; c' d`:      {"sh", "-c", "a  b; c", "d"},
		`sh -c "a \"b\" $c"`:     {"sh", "-c", `a "b" $c`},
		`  a\ b   '' "" x"y"z  `: {"a b", "", "", "xyz"},
		`a 'it'\''s'`:            {"a", "it's"},
		"echo 'open":             nil,
		`echo "open`:             nil,
		"a; b":                   nil,
		"a | b":                  nil,
		"a >b":                   nil,
		"a &":                    nil,
		`a\`:                     nil,
	} {
		got, err := splitCommandLine(line)
		if (err != nil) != (want == nil) || err != nil && !errors.Is(err, ErrInvalid) || err == nil &&
			!slices.Equal(got, want) {
			t.Errorf("%s: %q, %v; want %q", line, got, err, want)
		}
	}
}
