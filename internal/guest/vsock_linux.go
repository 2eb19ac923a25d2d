package guest

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/mdlayher/vsock"

	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// vsockHost is the context id of the host.
const vsockHost = 2

// serveVSock serves hosts over vsock, where the kernel command line says so: with "strata.vsock" the
// agent dials the host, which is what Microsoft's host awaits; with "strata.vsock=DIGEST" it listens.
// It does when serveVSock returns: a host that is answered on a serial port can rely on it.
func (g *guest) serveVSock(ctx context.Context, words map[string]string) {
	digest, ok := words["strata.vsock"]
	if !ok {
		return
	}
	if digest == "" {
		go func() {
			g.modules.load("vmw_vsock_virtio_transport")
			g.dialHost(ctx, dialHostPort)
		}()
		return
	}
	g.modules.load("vmw_vsock_virtio_transport")
	l, err := gcs.ListenVSock()
	if err != nil {
		g.log.Warn("vsock", "err", err)
		return
	}
	context.AfterFunc(ctx, func() { l.Close() })
	go gcs.ServeHosts(l, digest, func(stream io.ReadWriteCloser) { g.session(ctx, stream) })
}

// dialHost dials the host, again and again. Microsoft's host does not take the bridge before it has given
// the guest a seed and been dialled for the guest's log.
func (g *guest) dialHost(ctx context.Context, dial gcsserver.Dialer) {
	var seeded, logged bool
	for ctx.Err() == nil {
		if !seeded {
			seeded = takeSeed(ctx, dial)
		}
		if !logged {
			logged = g.sendLog(ctx, dial)
		}
		conn, err := dial(ctx, gcs.PortBridge)
		if err != nil {
			select { // there is no event for the host's beginning to listen
			case <-time.After(redialTime):
			case <-ctx.Done():
			}
			continue
		}
		seeded, logged = true, true // a host that has taken the bridge does not want the others any more
		if err := gcsserver.Serve(ctx, conn, dial, g.rt, g.log); err != nil {
			g.log.Warn("session ended", "err", err)
		}
	}
}

// redialTime is the time between two tries to reach a host that dials nobody.
const redialTime = 100 * time.Millisecond

// seedSize is the most that is taken of a host's seed, in bytes.
const seedSize = 512

// takeSeed adds what a host sends on its entropy port to the kernel's pool. It reports whether the host
// was there.
func takeSeed(ctx context.Context, dial gcsserver.Dialer) bool {
	conn, err := dial(ctx, gcs.PortEntropy)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	b, _ := io.ReadAll(io.LimitReader(conn, seedSize)) // a part is good as well
	_ = os.WriteFile("/dev/urandom", b, 0)
	return true
}

// sendLog sends the agent's log from now on to the host as well, one JSON object a line. It reports whether
// the host was there.
func (g *guest) sendLog(ctx context.Context, dial gcsserver.Dialer) bool {
	conn, err := dial(ctx, gcs.PortLog)
	if err != nil {
		return false
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	lines := slog.NewJSONHandler(&hostLog{conn: conn}, nil)
	g.log = slog.New(slog.NewMultiHandler(g.log.Handler(), lines))
	return true
}

// hostLog is the log connection to a host, which may stop to read: then no more is sent.
type hostLog struct {
	conn  net.Conn
	ended atomic.Bool
}

// hostLogTime bounds one write.
const hostLogTime = time.Second

func (h *hostLog) Write(p []byte) (int, error) {
	if h.ended.Load() {
		return len(p), nil
	}
	_ = h.conn.SetWriteDeadline(time.Now().Add(hostLogTime))
	if _, err := h.conn.Write(p); err != nil {
		h.ended.Store(true)
		h.conn.Close()
	}
	return len(p), nil
}

// dialHostPort is the Dialer over vsock. Its connection is nil where there is an error, and not a nil
// pointer in an interface, on which methods could be called.
func dialHostPort(ctx context.Context, port uint32) (net.Conn, error) {
	conn, err := vsock.DialContext(ctx, vsockHost, port, nil)
	if err != nil {
		return nil, fmt.Errorf("dial host port %d: %w", port, err)
	}
	return conn, nil
}
