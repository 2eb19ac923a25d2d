package gcs

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm"
)

// noPorts is a transport on which nobody dials.
type noPorts struct{}

func (noPorts) Listen(uint32) (net.Listener, error) { return nil, ErrPortTaken }
func (noPorts) Close() error                        { return nil }

// guestFunc plays a guest: it gets each request and returns the bytes to send back.
type guestFunc func(h Header, payload []byte) []byte

func answer(t testing.TB, h Header, payload any) []byte {
	t.Helper()
	b, err := EncodeMessage(Header{h.Type.Response(), h.ID}, payload, LargestMaxMessage)
	if err != nil {
		t.Error(err)
	}
	return b
}

// against creates a Client of a guest that negotiates as it should and then does as f says.
func against(t testing.TB, f guestFunc) (*Client, net.Conn) {
	t.Helper()
	host, guest := net.Pipe()
	go func() {
		defer guest.Close()
		for {
			h, payload, err := ReadMessage(guest, 0)
			if err != nil {
				return
			}
			var b []byte
			if h.Type == TypeNegotiateProtocol {
				r := &NegotiateResponse{Version: ProtocolVersion}
				r.Capabilities.RuntimeOsType = "Linux"
				r.Capabilities.GuestDefinedCapabilities = GuestDefinedCapabilities{DumpStacksSupported: true, StrataAgent: 1}
				b = answer(t, h, r)
			} else {
				b = f(h, payload)
			}
			if _, err := guest.Write(b); err != nil {
				return
			}
		}
	}()
	c, err := NewClient(context.Background(), host, noPorts{}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); guest.Close() })
	return c, guest
}

var anyRequest = hcsschema.GuestRequest{RequestType: "Add", ResourceType: "MappedVirtualDisk",
	Settings: hcsschema.LCOWMappedVirtualDisk{MountPath: "/run/x"}}

// TestObserveEnds: a list of mounts that a guest goes on with for ever ends with an error, however it does so.
func TestObserveEnds(t *testing.T) {
	long := strings.Repeat("x", 40<<10)
	for name, page := range map[string]func(offset int) Properties{
		"the same page": func(int) Properties { return Properties{StrataMounts: []Mount{{Path: "/a"}}, StrataNext: 1} },
		"backwards":     func(offset int) Properties { return Properties{StrataNext: max(1, 1000-offset)} },
		"many mounts": func(offset int) Properties {
			return Properties{StrataMounts: make([]Mount, 1000), StrataNext: offset + 1000}
		},
		"long paths": func(offset int) Properties {
			return Properties{StrataMounts: []Mount{{Path: long}}, StrataNext: offset + 1}
		},
		"long ids": func(offset int) Properties {
			return Properties{StrataMounts: []Mount{{ContainerID: long}}, StrataNext: offset + 1}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var asked, sent int
			c, _ := against(t, func(h Header, payload []byte) []byte {
				var r PropertiesRequest
				var q PropertyQuery
				if err := errors.Join(json.Unmarshal(payload, &r), r.Query.Decode(&q)); err != nil {
					t.Error(err)
				}
				text, err := EncodeText(page(q.StrataOffset))
				if err != nil {
					t.Error(err)
				}
				asked, sent = asked+1, sent+len(text)
				if asked > 1000 {
					return []byte("no end, which is what is tested")
				}
				return answer(t, h, &PropertiesResponse{Properties: text})
			})
			mounts, err := c.Observe(t.Context())
			if !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "no end") || mounts != nil {
				t.Errorf("%d mounts and %v, want an error matching %v", len(mounts), err, ErrProtocol)
			}
			if most := 20 << 20; sent > most {
				t.Errorf("%d bytes were taken, at most %d are wanted", sent, most)
			}
		})
	}
}

// TestGarbageGuests: whatever a guest sends, the bridge ends with a clear error and the callers are
// released.
func TestGarbageGuests(t *testing.T) {
	raw := func(typ MessageType, size uint32, id uint64, rest string) []byte {
		b := make([]byte, HeaderSize)
		binary.LittleEndian.PutUint32(b, uint32(typ))
		binary.LittleEndian.PutUint32(b[4:], size)
		binary.LittleEndian.PutUint64(b[8:], id)
		return append(b, rest...)
	}
	ok := &EmptyResponse{}
	for name, tc := range map[string]struct {
		guest guestFunc
		want  error
		text  string
	}{
		"gigabyte length": {func(h Header, _ []byte) []byte { return raw(h.Type.Response(), 1<<30, h.ID, "") },
			ErrFraming, "1073741824"},
		"length below header": {func(h Header, _ []byte) []byte { return raw(h.Type.Response(), 15, h.ID, "") }, ErrFraming,
			"size 15"},
		"length zero": {func(Header, []byte) []byte { return make([]byte, 16) }, ErrFraming, "size 0"},
		"answered twice": {func(h Header, _ []byte) []byte {
			return append(answer(t, Header{TypeNegotiateProtocol, h.ID - 1}, ok), answer(t, h, ok)...)
		}, ErrProtocol, "not outstanding"},
		"wrong type": {func(h Header, _ []byte) []byte {
			b := answer(t, h, ok)
			binary.LittleEndian.PutUint32(b, uint32(TypeDumpStacks.Response()))
			return b
		}, ErrProtocol, "DumpStacks"},
		"request to the host": {func(h Header, _ []byte) []byte { return raw(TypeCreate, 16, h.ID, "") }, ErrProtocol,
			"Create"},
		"unknown kind": {func(h Header, _ []byte) []byte { return raw(0xf0000001, 16, h.ID, "") }, ErrProtocol,
			"0xf0000001"},
		"broken JSON": {func(h Header, _ []byte) []byte { return raw(h.Type.Response(), 18, h.ID, "{x") },
			ErrProtocol, "invalid character"},
		"JSON of another kind": {func(h Header, _ []byte) []byte { return raw(h.Type.Response(), 18, h.ID, "[]") },
			ErrProtocol, "array"},
		"result too wide": {func(h Header, _ []byte) []byte {
			return raw(h.Type.Response(), 37, h.ID, `{"Result":9999999999}`)
		}, ErrProtocol, "32 bits"},
		"broken notification": {func(Header, []byte) []byte { return raw(TypeNotification, 17, 0, "!") }, ErrProtocol,
			"notification"},
		"cut off": {func(h Header, _ []byte) []byte { return raw(h.Type.Response(), 100, h.ID, "{") }, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c, guest := against(t, tc.guest)
			go func() {
				if name == "cut off" {
					time.Sleep(10 * time.Millisecond)
					guest.Close()
				}
			}()
			err := c.Modify(t.Context(), anyRequest)
			if err == nil || (tc.want != nil && !errors.Is(err, tc.want)) || !strings.Contains(err.Error(), tc.text) {
				t.Fatalf("got %v, want %v with %q", err, tc.want, tc.text)
			}
			<-c.Done()
			if !errors.Is(c.Err(), ErrClosed) {
				t.Errorf("the bridge's error: %v", c.Err())
			}
			after := c.Modify(t.Context(), anyRequest)
			if !errors.Is(after, ErrNotSent) || !errors.Is(after, ErrClosed) {
				t.Errorf("a call after the end: %v", after)
			}
			for _, err := range []error{err, c.Err(), after} {
				broke := strings.Contains(err.Error(), "broke the protocol: ") && errors.Is(err, vmm.ErrProtocol)
				if broke != (tc.want != nil) || !errors.Is(err, vmm.ErrGuestUnreachable) ||
					strings.Contains(err.Error(), "does not answer") {
					t.Errorf("it is not said what happened: %v", err)
				}
			}
		})
	}
}

// TestSilentGuest: with a guest that answers nothing each call ends with its own context, and the
// bridge lives on.
func TestSilentGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var late []Header
		speak := false
		c, _ := against(t, func(h Header, _ []byte) []byte {
			if !speak {
				late = append(late, h)
				return nil
			}
			var b []byte
			for _, l := range late {
				b = append(b, answer(t, l, &EmptyResponse{})...)
			}
			late = nil
			return append(b, answer(t, h, &EmptyResponse{})...)
		})
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
			err := c.Modify(ctx, anyRequest)
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrNotSent) || errors.Is(err, ErrClosed) {
				t.Fatalf("a call without an answer: %v", err)
			}
		}
		synctest.Wait()
		speak = true
		if err := c.Modify(t.Context(), anyRequest); err != nil {
			t.Fatalf("after three late answers: %v", err)
		}
		c.Close()
		synctest.Wait()
	})
}

func TestNegotiationRefused(t *testing.T) {
	for name, resp := range map[string]*NegotiateResponse{
		"version": {Version: 3, Capabilities: Capabilities{RuntimeOsType: "Linux"}},
		"system":  {Version: 4},
		"refusal": {ResponseBase: ResponseBase{Result: ResultProtocolVersion, ErrorMessage: "no"}},
	} {
		t.Run(name, func(t *testing.T) {
			host, guest := net.Pipe()
			go func() {
				h, _, err := ReadMessage(guest, 0)
				if err == nil {
					_, _ = guest.Write(answer(t, h, resp))
				}
				_, _ = io.Copy(io.Discard, guest)
			}()
			if _, err := NewClient(t.Context(), host, noPorts{}, Options{}); err == nil {
				t.Fatal("no error")
			}
		})
	}
}

// TestNobodyThere: without an agent, Connect ends with its context, whatever the stream holds.
func TestNobodyThere(t *testing.T) {
	for name, guest := range map[string]func(net.Conn){
		"silent":  func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
		"unread":  func(net.Conn) {},
		"stale":   func(c net.Conn) { _, _ = c.Write(markFrame(markReady, strings.Repeat("0", nonceSize))) },
		"flood":   func(c net.Conn) { go io.Copy(io.Discard, c); _, _ = io.Copy(c, zeros{}) },
		"hung up": func(c net.Conn) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			host, other := net.Pipe()
			defer other.Close()
			go guest(other)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			c, err := Connect(ctx, host, Options{})
			if err == nil {
				c.Close()
				t.Fatal("connected to nobody")
			}
			if _, err := host.Write([]byte{1}); err == nil {
				t.Error("the connection is left open")
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestErrorText(t *testing.T) {
	var resp EmptyResponse
	if err := json.Unmarshal(
		[]byte(
			`{"Result":-2147467259,"ErrorMessage":"a\u001b[31mb","ErrorRecords":[{"Message":"umount /run/x: device or resource busy","Line":4294967295}]}`), &resp); err != nil {
		t.Fatal(err)
	}
	err := errorFrom("ModifySettings", resp.Base())
	if !errors.Is(err, ErrBusy) || errors.Is(err, ErrNotFound) {
		t.Errorf("kind of %v", err)
	}
	want := "a?[31mb; umount /run/x: device or resource busy (the guest refused ModifySettings with 0x80004005)"
	if err.Error() != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
	if b, err := json.Marshal(ResultFail); err != nil || string(b) != "-2147467259" {
		t.Errorf("on the wire: %s, %v", b, err)
	}
}

// TestLateStart: a process that starts after its starter has gone away is killed.
func TestLateStart(t *testing.T) {
	killed := make(chan SignalRequest, 1)
	started := make(chan Header, 1)
	ctx, cancel := context.WithCancel(t.Context())
	c, _ := against(t, func(h Header, payload []byte) []byte {
		switch h.Type {
		case TypeExecuteProcess:
			started <- h
			cancel()
			return nil
		case TypeSignalProcess:
			var r SignalRequest
			if err := json.Unmarshal(payload, &r); err != nil {
				t.Error(err)
			}
			killed <- r
			return answer(t, h, &EmptyResponse{})
		}
		return append(answer(t, <-started, &ExecuteResponse{ProcessId: 77}), answer(t, h, &StacksResponse{})...)
	})
	if _, err := c.Exec(ctx, vmm.ProcessSpec{Args: []string{"sleep"}}); !errors.Is(err, context.Canceled) {
		t.Fatalf("exec: %v", err)
	}
	if _, err := c.Stacks(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := <-killed; r.ProcessId != 77 || r.Options != nil {
		t.Fatalf("sent %+v, wanted SIGKILL to process 77", r)
	}
}

// unheard is a transport on which the guest dials nothing.
type unheard struct{}

func (unheard) Listen(port uint32) (net.Listener, error) {
	return &muxListener{t: &muxTransport{}, port: port, done: make(chan struct{})}, nil
}
func (unheard) Close() error { return nil }

// TestExecEndsWithItsContext: killing a process whose streams did not come is not waited for.
func TestExecEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := against(t, func(h Header, _ []byte) []byte {
			if h.Type == TypeExecuteProcess {
				return answer(t, h, &ExecuteResponse{ProcessId: 77})
			}
			return nil // the guest does not even answer
		})
		c.transport = unheard{}
		begun := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := c.Exec(ctx, vmm.ProcessSpec{Args: []string{"sleep"}, Stdout: io.Discard}); !errors.Is(err,
			context.DeadlineExceeded) {
			t.Errorf("exec: %v", err)
		}
		if took := time.Since(begun); took != time.Minute { // of the clock that runs when everybody waits
			t.Errorf("Exec took %s", took)
		}
		c.Close()
		synctest.Wait()
	})
}

// TestAnswersOfAnEarlierBridge: a guest that answers here what was asked on the bridge before costs nothing.
func TestAnswersOfAnEarlierBridge(t *testing.T) {
	ok := &EmptyResponse{}
	for _, id := range []func(uint64) uint64{
		func(uint64) uint64 { return 0 }, func(uint64) uint64 { return 1 }, func(id uint64) uint64 { return id + 1 },
		func(id uint64) uint64 { return id - 2 }, func(uint64) uint64 { return 1<<64 - 1 },
	} {
		c, _ := against(t, func(h Header, _ []byte) []byte {
			return append(answer(t, Header{TypeWaitForProcess, id(h.ID)}, ok), answer(t, h, ok)...)
		})
		if err := c.Modify(t.Context(), anyRequest); err != nil {
			t.Error(err)
		}
	}
	first := map[uint64]bool{}
	for range 5 {
		c, _ := against(t, func(h Header, _ []byte) []byte { return answer(t, h, ok) })
		first[c.firstID] = true
	}
	if len(first) != 5 {
		t.Errorf("bridges begin with the ids %v", first)
	}
}

// TestRequestLimit: only our agent is sent requests beyond the protocol's limit, and only as large as it says.
func TestRequestLimit(t *testing.T) {
	for _, tc := range []struct {
		caps GuestDefinedCapabilities
		want int
	}{
		{GuestDefinedCapabilities{}, DefaultMaxMessage},
		{GuestDefinedCapabilities{StrataMaxRequest: 1 << 20}, DefaultMaxMessage}, // not ours
		{GuestDefinedCapabilities{StrataAgent: 1}, DefaultMaxMessage},
		{GuestDefinedCapabilities{StrataAgent: 1, StrataMaxRequest: 1 << 20}, 1 << 20},
		{GuestDefinedCapabilities{StrataAgent: 1, StrataMaxRequest: 5}, DefaultMaxMessage},
		{GuestDefinedCapabilities{StrataAgent: 1, StrataMaxRequest: 1<<32 - 1}, LargestMaxMessage},
	} {
		host, guest := net.Pipe()
		go func() {
			h, _, err := ReadMessage(guest, 0)
			if err != nil {
				return
			}
			r := &NegotiateResponse{Version: ProtocolVersion}
			r.Capabilities.RuntimeOsType, r.Capabilities.GuestDefinedCapabilities = "Linux", tc.caps
			_, _ = guest.Write(answer(t, h, r))
		}()
		c, err := NewClient(t.Context(), host, noPorts{}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if c.requests != tc.want || c.limit != DefaultMaxMessage {
			t.Errorf("%+v: requests of %d bytes, answers of %d; want %d, %d", tc.caps, c.requests, c.limit, tc.want,
				DefaultMaxMessage)
		}
		c.Close()
		guest.Close()
	}
}
