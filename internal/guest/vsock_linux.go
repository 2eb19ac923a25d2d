package guest

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/mdlayher/vsock"

	"github.com/stratavm/strata/internal/gcs"
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
		go g.dialHost(ctx)
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

// dialHost dials the host over vsock, again and again.
func (g *guest) dialHost(ctx context.Context) {
	g.modules.load("vmw_vsock_virtio_transport")
	dial := dialHostPort
	if seed, err := dial(ctx, gcs.PortEntropy); err == nil {
		_ = seed.SetReadDeadline(time.Now().Add(time.Second))
		b, _ := io.ReadAll(io.LimitReader(seed, 512))
		seed.Close()
		_ = os.WriteFile("/dev/urandom", b, 0)
	}
	for ctx.Err() == nil {
		conn, err := dial(ctx, gcs.PortBridge)
		if err != nil {
			select { // nobody tells when the host begins to listen
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		if err := Serve(ctx, conn, dial, g.rt, g.log); err != nil {
			g.log.Warn("session ended", "err", err)
		}
	}
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
