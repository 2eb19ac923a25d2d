// Package slirp has the networks of containers served by slirp4netns: TCP and UDP without any right on the host. Of the
// others, QEMU's own user network lets a guest reach the host's loopback addresses, and passt of Debian 12 leaves a
// connection from outside half open until the client speaks, so that a server that speaks first is never heard.
package slirp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"

	"github.com/stratavm/strata/vmm"
)

// Program is what serves networks.
const Program = "slirp4netns"

// Find returns the path of what serves networks.
func Find() (string, error) {
	path, err := exec.LookPath(Program)
	if err != nil {
		return "", fmt.Errorf("network: %w; install it with: apt-get install %s", err, Program)
	}
	return path, nil
}

// Config says what network to serve.
type Config struct {
	// Dir is a folder of the server's own, which exists and is empty. The server keeps it open as descriptor DirFD:
	// that is how it is found again.
	Dir string
	// UID is who the server runs as, with the right to ports below 1024 and no other; 0: who we are.
	UID int
	// Namespace is the file of a network namespace, in which the server makes the interface eth0. Empty: it exchanges
	// packets over a socket instead, and ends with its lifeline.
	Namespace string
	Ports     []vmm.PortForward
	Subnet    netip.Prefix // see vmm.UserNetwork
}

// DirFD is the descriptor of Config.Dir in the server.
const DirFD = 3

// Server is a server that serves. It is a child of this process, and is not waited for by this package.
type Server struct {
	PID    int
	Socket *os.File // packets; nil with a namespace
	Life   *os.File // the server ends when the last copy of it is closed; nil with a namespace
}

// forward is a request to the server.
type forward struct {
	Execute   string `json:"execute"`
	Arguments struct {
		Proto     string `json:"proto"`
		HostAddr  string `json:"host_addr"`
		HostPort  uint16 `json:"host_port"`
		GuestAddr string `json:"guest_addr"`
		GuestPort uint16 `json:"guest_port"`
	} `json:"arguments"`
}

func forwardRequest(p vmm.PortForward, subnet netip.Prefix) ([]byte, error) {
	f := forward{Execute: "add_hostfwd"}
	f.Arguments.Proto, f.Arguments.HostPort, f.Arguments.GuestPort = p.Protocol, p.HostPort, p.GuestPort
	if f.Arguments.HostAddr = p.HostIP; p.HostIP == "" {
		f.Arguments.HostAddr = "0.0.0.0"
	}
	f.Arguments.GuestAddr = vmm.UserNetwork(subnet).Address.Addr().String()
	return json.Marshal(f)
}

// PortsFree returns an error that names the ports that cannot be listened on, each with the reason, which the server
// does not tell.
func PortsFree(ctx context.Context, ports []vmm.PortForward) error {
	var errs []error
	for _, p := range ports {
		var c net.ListenConfig
		var l io.Closer
		var err error
		if p.Protocol == "udp" {
			l, err = c.ListenPacket(ctx, "udp4", p.Host())
		} else {
			l, err = c.Listen(ctx, "tcp4", p.Host())
		}
		if err == nil {
			err = l.Close()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("port %s cannot be published: %w", p, err))
		}
	}
	return errors.Join(errs...)
}
