package gcsserver

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"testing"

	"github.com/stratavm/strata/internal/gcs"
)

// refuser answers every look-up with an error, so that no request can wait.
type refuser struct{ *memory }

func (refuser) PowerOff(context.Context) error { return ErrUnsupported }

// FuzzServe lets a host send anything: the session ends with it, and no request is left behind.
func FuzzServe(f *testing.F) {
	negotiate, err := gcs.EncodeMessage(gcs.Header{Type: gcs.TypeNegotiateProtocol},
		&gcs.NegotiateRequest{MinimumVersion: 4, MaximumVersion: 4}, 0)
	if err != nil {
		f.Fatal(err)
	}
	for t := gcs.TypeCreate; t <= gcs.TypeDeleteContainerState; t += 0x100 {
		for _, text := range []string{"", "{}", "[", `{"ContainerId":"c","Request":{"Settings":7}}`,
			`{"ContainerId":"c","Settings":{"ProcessParameters":"{\"CommandArgs\":[\"fail\"]}"}}`,
			`{"ContainerId":"00000000-0000-0000-0000-000000000000","Query":"{\"PropertyTypes\":[\"StrataMounts\"],\"StrataOffset\":-5}"}`,
			`{"ContainerId":"c","ContainerConfig":"{\"SchemaVersion\":{\"Major\":2,\"Minor\":1}}"}`} {
			b := make([]byte, gcs.HeaderSize)
			binary.LittleEndian.PutUint32(b, uint32(t))
			binary.LittleEndian.PutUint32(b[4:], uint32(gcs.HeaderSize+len(text)))
			f.Add(append(append([]byte{}, negotiate...), append(b, text...)...))
			f.Add(append(b, text...))
		}
	}
	log := slog.New(slog.DiscardHandler)
	f.Fuzz(func(t *testing.T, b []byte) {
		host, guest := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, host) }()
		go func() {
			_, _ = host.Write(b)
			host.Close()
		}()
		dial := func(context.Context, uint32) (net.Conn, error) { return nil, ErrUnsupported }
		_ = Serve(t.Context(), guest, dial, refuser{newMemory()}, log)
		if _, err := guest.Write([]byte{0}); err == nil {
			t.Fatal("the connection is left open")
		}
	})
}
