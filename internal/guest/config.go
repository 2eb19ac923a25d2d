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
	// PowerOff stops the machine; nil is what the kernel command line says.
	PowerOff func() error
	// Session, where it is set, is called with the stream of each session that a host begins, instead of what
	// answers it; it closes the stream. serve answers the requests that come from bridge: a session may stand
	// between the host and the agent. It is for guests that test a host.
	Session func(ctx context.Context, stream io.ReadWriteCloser, serve ServeFunc)
	// Hold, where it is set, is called before the VM is held as a template, and Renew instead of what makes it a VM of
	// its own, which is really. They are for guests that show what that does.
	Hold  func()
	Renew func(really func() error) error
}

// ServeFunc answers the requests of one bridge, as [gcsserver.Serve] does. dial connects to ports of the host.
type ServeFunc func(ctx context.Context, bridge net.Conn, dial gcsserver.Dialer) error
