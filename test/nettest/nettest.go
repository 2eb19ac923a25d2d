// Package nettest is what tests of networks need of this system: its address, a port of it that is free, and a name
// server.
package nettest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

// HostAddress is an IPv4 address of this system that is not one of loopback.
func HostAddress(t testing.TB) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	treetest.Need(t, false, "an IPv4 address besides those of loopback", "ip addr add")
	return ""
}

// UnusedPort is a TCP port of 127.0.0.1 that nobody listens at.
func UnusedPort(t testing.TB) uint16 {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// Known is the address that every name has by NameServer.
const Known = "192.0.2.77"

// NameServer starts a name server until the test ends, at a loopback address of its own, which it returns: several
// tests may have one at a time. Resolvers know no port but 53, so it takes root, and that nobody else
// serves names at all addresses of this system.
func NameServer(t testing.TB) (address string) {
	t.Helper()
	c := listen(t)
	done := make(chan struct{})
	t.Cleanup(func() {
		c.Close()
		<-done
	})
	go func() {
		defer close(done)
		q := make([]byte, 512)
		for {
			n, from, err := c.ReadFrom(q)
			if err != nil {
				return
			}
			if a := answer(q[:n]); a != nil {
				_, _ = c.WriteTo(a, from) // who asks asks again
			}
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).IP.String()
}

// listen takes port 53 of the first loopback address where it is free.
func listen(t testing.TB) net.PacketConn {
	t.Helper()
	for i := 1; ; i++ {
		c, err := net.ListenPacket("udp4", fmt.Sprintf("127.53.0.%d:53", i))
		switch {
		case err == nil:
			return c
		case errors.Is(err, syscall.EADDRINUSE) && i < 254: // by another test
		default:
			t.Fatalf("a name server for the test: %v: run as root, on a system where nobody listens at port 53 of "+
				"all addresses (ss -lunp)", err)
		}
	}
}

// answer answers a question about a name, as RFC 1035 has it: one of type A with Known, others with nothing. It is nil
// for what is no question.
func answer(q []byte) []byte {
	if len(q) < 17 {
		return nil
	}
	end := 12 + bytes.IndexByte(q[12:], 0) + 5 // after the name, type and class
	if end < 17 || end > len(q) {
		return nil
	}
	a := append([]byte{q[0], q[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, q[12:end]...)
	if q[end-3] != 1 {
		return a
	}
	a[7] = 1
	return append(append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4), net.ParseIP(Known).To4()...)
}
