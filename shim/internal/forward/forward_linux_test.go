package forward

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/nsthread"
	"github.com/stratavm/strata/test/leaktest"
)

// TestForward: a port of any loopback address of a namespace is that of another address outside of it; what nobody
// listens to is a reset; and after the end nobody answers.
func TestForward(t *testing.T) {
	treetest.NeedRoot(t, "makes a network namespace")
	leaktest.Check(t)
	server, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			b, _ := io.ReadAll(c) // until the other side has said all
			fmt.Fprintf(c, "heard %s", b)
			c.Close()
		}
	}()
	port := server.Addr().(*net.TCPAddr).Port

	var namespace *os.File
	if err := nsthread.RunNew(func() (err error) {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err == nil {
			namespace, err = os.Open("/proc/thread-self/ns/net")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer namespace.Close()
	dial := func(address string) (c net.Conn, err error) {
		err = nsthread.Run(namespace, func() error {
			c, err = net.DialTimeout("tcp4", address, 10*time.Second)
			return err
		})
		return c, err
	}
	f, err := New(namespace, netip.MustParseAddr("127.0.0.1"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"127.0.0.1", "127.9.9.9"} {
		c, err := dial(fmt.Sprintf("%s:%d", address, port))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "this"); err != nil {
			t.Error(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Error(err)
		}
		if b, err := io.ReadAll(c); string(b) != "heard this" || err != nil {
			t.Errorf("by %s: %q, %v", address, b, err)
		}
		c.Close()
	}
	if c, err := dial("127.0.0.1:1"); err == nil {
		if b, err := io.ReadAll(c); err == nil {
			t.Errorf("a port that nobody listens to: %q", b)
		}
		c.Close()
	}
	open, err := dial(fmt.Sprintf("127.0.0.1:%d", port)) // has nothing said when the end comes
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if b, _ := io.ReadAll(open); len(b) > 0 {
		t.Errorf("after the end: %q", b)
	}
	if c, err := dial(fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
		c.Close()
		t.Error("a connection is accepted after the end")
	}
}

// full is a listener that cannot take a connection, as often as it is told, and is closed then.
type full struct {
	net.Listener
	times, asked int
}

func (f *full) Accept() (net.Conn, error) {
	if f.asked++; f.asked > f.times {
		return nil, net.ErrClosed
	}
	return nil, syscall.EMFILE
}

// TestAcceptFails: a connection that cannot be taken is not the end.
func TestAcceptFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &full{times: 3}
		f := &Forwarder{listener: l, log: slog.New(slog.DiscardHandler)}
		f.serve(t.Context())
		if l.asked != 4 {
			t.Errorf("%d times a connection was waited for, want 4", l.asked)
		}
	})
}
