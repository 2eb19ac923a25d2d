//go:build !linux

package supervise

import (
	"context"
	"errors"
	"net"
)

func listen(string) (*net.UnixListener, error) { return nil, errors.ErrUnsupported }

func unlisten(_ string, l *net.UnixListener) error { return l.Close() }

func dial(context.Context, string) (net.Conn, error) { return nil, errors.ErrUnsupported }
