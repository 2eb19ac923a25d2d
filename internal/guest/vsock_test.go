//go:build linux

package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/stratavm/strata/internal/gcs"
)

// TestDialHostPort: an error comes with no connection at all, on which Close could be called.
func TestDialHostPort(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // so that it fails on hosts with vsock, too
	if conn, err := dialHostPort(ctx, 5); err == nil || conn != nil {
		t.Errorf("conn %#v, error %v", conn, err)
	}
}

// TestDialHost: a host that begins as Microsoft's does is dialled for the seed, then for the log, then for
// the bridge, also when it begins to listen later than the guest to dial.
func TestDialHost(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	var ports []uint32
	tries := 0
	bridge := make(chan net.Conn, 1)
	var lines bytes.Buffer
	dial := func(_ context.Context, port uint32) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if tries++; tries <= 6 { // two rounds
			return nil, errors.New("connection reset")
		}
		if ports = append(ports, port); len(ports) > 3 { // once is enough
			return nil, errors.New("connection reset")
		}
		ours, theirs := net.Pipe()
		switch port {
		case gcs.PortEntropy:
			go func() {
				_, _ = theirs.Write(make([]byte, 512))
				theirs.Close()
			}()
		case gcs.PortLog:
			go func() {
				b := make([]byte, 4096)
				for {
					n, err := theirs.Read(b)
					mu.Lock()
					lines.Write(b[:n])
					mu.Unlock()
					if err != nil {
						return
					}
				}
			}()
		default:
			bridge <- theirs
		}
		return ours, nil
	}
	var own bytes.Buffer
	g := &guest{rt: &linuxRuntime{}, log: slog.New(slog.NewTextHandler(&own, nil))}
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.dialHost(ctx, dial)
	}()
	host := <-bridge
	if _, err := host.Write(make([]byte, gcs.HeaderSize)); err != nil { // no message: the session ends, and that is logged
		t.Fatal(err)
	}
	if _, err := io.ReadAll(host); err != nil {
		t.Fatal(err)
	}
	for logged := false; !logged; {
		mu.Lock()
		logged = bytes.Contains(lines.Bytes(), []byte("session ended")) && bytes.HasSuffix(lines.Bytes(), []byte("\n"))
		mu.Unlock()
	}
	cancel()
	<-done
	mu.Lock()
	defer mu.Unlock()
	if want := []uint32{gcs.PortEntropy, gcs.PortLog, gcs.PortBridge}; !slices.Equal(ports[:3], want) ||
		slices.Contains(ports[3:], gcs.PortEntropy) {
		t.Errorf("dialled %d, want %d and then the bridge only", ports, want)
	}
	for line := range bytes.Lines(lines.Bytes()) {
		var l struct{ Time, Level, Msg string }
		if err := json.Unmarshal(line, &l); err != nil || l.Time == "" || l.Level == "" || l.Msg == "" {
			t.Errorf("line %q: %v", line, err)
		}
	}
	if !bytes.Contains(own.Bytes(), []byte("session ended")) {
		t.Error("the guest's own log has it not")
	}
}
