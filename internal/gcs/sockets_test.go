package gcs

import (
	"errors"
	"io"
	"net"
	"testing"
)

// TestSocketsClose: the end of a transport is that of its listeners and connections, and nothing can
// be opened on it any more.
func TestSocketsClose(t *testing.T) {
	var addr net.Addr
	tr := Sockets(func(uint32) (net.Listener, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			addr = l.Addr()
		}
		return l, err
	})
	l, err := tr.Listen(1)
	if err != nil {
		t.Fatal(err)
	}
	guest, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	host, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Error(err)
	}
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
	if _, err := host.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a connection: %v", err)
	}
	if _, err := io.ReadAll(guest); err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a listener: %v", err)
	}
	if _, err := tr.Listen(2); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Listen after Close: %v", err)
	}
	if _, err := net.Dial("tcp", addr.String()); err == nil {
		t.Error("the port of a refused Listen is open")
	}
}
