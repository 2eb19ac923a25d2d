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

// vsockHost is the host's CID, VMADDR_CID_HOST.
const vsockHost = 2

// serveVSock serves hosts over vsock if the kernel command line says so: with "strata.vsock" the agent dials the host,
// as Microsoft's host expects; with "strata.vsock=DIGEST" it listens. When serveVSock returns, the agent is listening,
// so that a host that is answered on a serial port can rely on it.
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

// dialHost dials the host until ctx ends, and again after each session. Microsoft's host accepts the bridge only after
// the guest has connected to its entropy and log ports.
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
			select { // no event says when the host begins to listen
			case <-time.After(redialInterval):
			case <-ctx.Done():
			}
			continue
		}
		seeded, logged = true, true // once it has accepted the bridge, a host does not accept the others
		if err := gcsserver.Serve(ctx, conn, dial, g.rt, g.log); err != nil {
			g.log.Warn("session ended", "err", err)
		}
	}
}

// redialInterval is the pause between attempts to dial the host.
const redialInterval = 100 * time.Millisecond

// seedSize is the maximum size of a host's seed in bytes; more is ignored.
const seedSize = 512

// takeSeed adds the seed from the host's entropy port to the kernel's entropy pool. It reports whether it could
// connect.
func takeSeed(ctx context.Context, dial gcsserver.Dialer) bool {
	conn, err := dial(ctx, gcs.PortEntropy)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	b, _ := io.ReadAll(io.LimitReader(conn, seedSize)) // a part helps too
	_ = os.WriteFile("/dev/urandom", b, 0)
	return true
}

// sendLog makes the agent log to the host's log port as well, one JSON object per line. It reports whether it could
// connect.
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

// hostLog writes to a host's log connection. If a write fails or times out, later ones are dropped.
type hostLog struct {
	conn  net.Conn
	ended atomic.Bool
}

// hostLogTimeout bounds one write.
const hostLogTimeout = time.Second

func (h *hostLog) Write(p []byte) (int, error) {
	if h.ended.Load() {
		return len(p), nil
	}
	_ = h.conn.SetWriteDeadline(time.Now().Add(hostLogTimeout))
	if _, err := h.conn.Write(p); err != nil {
		h.ended.Store(true)
		h.conn.Close()
	}
	return len(p), nil
}

// dialHostPort is the Dialer over vsock. On error it returns a nil interface, not an interface with a nil pointer.
func dialHostPort(ctx context.Context, port uint32) (net.Conn, error) {
	conn, err := vsock.DialContext(ctx, vsockHost, port, nil)
	if err != nil {
		return nil, fmt.Errorf("dial host port %d: %w", port, err)
	}
	return conn, nil
}
