package gcs

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// FuzzReadMessage: no input makes the reader allocate beyond its limit, and what it accepts fits.
func FuzzReadMessage(f *testing.F) {
	good, err := EncodeMessage(Header{TypeCreate, 1}, &EmptyRequest{}, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:10])
	huge := bytes.Clone(good)
	binary.LittleEndian.PutUint32(huge[4:], 1<<31)
	f.Add(huge)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, payload, err := ReadMessage(bytes.NewReader(b), 256)
		if err != nil {
			return
		}
		if len(payload) > 256-HeaderSize || !bytes.Equal(payload, b[HeaderSize:HeaderSize+len(payload)]) {
			t.Fatalf("%v: payload of %d bytes from %d", h, len(payload), len(b))
		}
	})
}

// FuzzGuest lets a guest answer the negotiation with anything: NewClient and calls end, with their
// context at the latest.
func FuzzGuest(f *testing.F) {
	resp := &NegotiateResponse{Version: ProtocolVersion}
	resp.Capabilities.RuntimeOsType = "Linux"
	ok := answer(f, Header{TypeNegotiateProtocol, 0}, resp)
	second := answer(f, Header{TypeModifySettings, 1}, &EmptyResponse{})
	f.Add(ok)
	f.Add(append(bytes.Clone(ok), second...))
	f.Add(append(bytes.Clone(ok), "garbage that is longer than a header"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		host, guest := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, guest) }()
		go func() {
			_, _ = guest.Write(b)
			guest.Close()
		}()
		c, err := NewClient(t.Context(), host, noPorts{}, Options{})
		if err != nil {
			return
		}
		_ = c.Modify(t.Context(), anyRequest)
		_, _ = c.Observe(t.Context())
		<-c.Done()
	})
}

// fuzzPort gives the guest's link some bytes and then hosts that behave.
type fuzzPort struct {
	io.Reader
	net.Conn
}

func (p fuzzPort) Read(b []byte) (int, error) { return p.Reader.Read(b) }

// FuzzLink: whatever an earlier host has left in the stream, the next one gets through.
func FuzzLink(f *testing.F) {
	nonce := strings.Repeat("a", nonceSize)
	hello, start := markFrame(markHello, nonce), markFrame(markStart, nonce)
	f.Add([]byte("stale"))
	f.Add(hello)
	f.Add(hello[:20])
	f.Add(append(bytes.Clone(hello), start...))
	f.Add(append(append(bytes.Clone(hello), start...), 0xff, 0xff, 1, 0xff, 7, 'x'))
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, stale []byte) {
		host, guest := net.Pipe()
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = ServePort(fuzzPort{io.MultiReader(bytes.NewReader(stale), guest), guest}, func(s io.ReadWriteCloser) {
				defer s.Close()
				_, _ = io.Copy(s, s) // an echo
			})
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		r, err := hostHandshake(ctx, host)
		if err != nil {
			t.Fatal(err)
		}
		stream := &hostStream{host, r}
		want := []byte{'h', 0xff, 0xff, 0x01, 'i', 0xff}
		go func() { _, _ = stream.Write(want) }()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(stream, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("got %x (%v), want %x", got, err, want)
		}
		guest.Close()
		host.Close()
	})
}
