package guest

import (
	"context"
	"io"
	"log/slog"
	"net"

	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// Config is how the agent of a guest runs. The zero value is that of PID 1.
type Config struct {
	Logger *slog.Logger
	// PowerOff stops the machine; if nil, the kernel command line says how.
	PowerOff func() error
	// Session, if set, handles the stream of each host session instead of the agent, and must close it. It may pass
	// requests on to the agent by serve, and so act as a proxy between the two. It is for guests that test a host.
	Session func(ctx context.Context, stream io.ReadWriteCloser, serve ServeFunc)
	// Hold, if set, is called before the VM is held as a template. Renew, if set, is called instead of renewing a VM
	// that was loaded from a template; really does that. They are for guests that test templates.
	Hold  func()
	Renew func(really func() error) error
}

// ServeFunc answers the requests of one bridge, as [gcsserver.Serve] does. dial connects to ports of the host.
type ServeFunc func(ctx context.Context, bridge net.Conn, dial gcsserver.Dialer) error
