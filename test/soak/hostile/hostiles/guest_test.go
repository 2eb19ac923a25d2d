package hostiles

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/vmm"
)

// TestOrders: a host's program Control is an order, whose answer says whether the one before was carried out.
func TestOrders(t *testing.T) {
	var g Guest
	g.boot.Do(func() {}) // this system's kernel was given no orders
	honest := func(ctx context.Context, bridge net.Conn, dial gcsserver.Dialer) error {
		return gcsserver.Serve(ctx, bridge, dial, nil, slog.New(slog.DiscardHandler))
	}
	host, port := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = gcs.ServePort(port, func(s io.ReadWriteCloser) { g.Session(t.Context(), s, honest) }) // ends with the host
	}()
	c, err := gcs.Connect(t.Context(), host, gcs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, order := range []struct {
		mode string
		asks gcs.MessageType
		want string
	}{
		{"stall", gcs.TypeModifySettings, Spent}, {"", 0, Armed}, {"", 0, Spent}, {"no mode", 0, "no such mode"},
		{"huge", gcs.TypeDumpStacks, Spent},
	} {
		_, err := c.Exec(t.Context(), vmm.ProcessSpec{Args: []string{Control, order.mode, order.asks.String()}})
		if err == nil || !strings.Contains(err.Error(), order.want) {
			t.Errorf("order %v: %v, want %q", order, err, order.want)
		}
	}
	if err := errors.Join(c.Close(), host.Close(), port.Close()); err != nil {
		t.Error(err)
	}
	<-served
}
