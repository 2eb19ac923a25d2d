// Package slirp provides user-mode networks for containers by slirp4netns: TCP and UDP without privileges on the host.
// The alternatives are not used: QEMU's user network lets a guest reach the host's loopback addresses, and Debian 12's
// passt does not complete an incoming connection until the client sends data, so that protocols in which the server
// speaks first fail.
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

// Program is the name of the server program.
const Program = "slirp4netns"

// Find returns the path of Program.
func Find() (string, error) {
	path, err := exec.LookPath(Program)
	if err != nil {
		return "", fmt.Errorf("network: %w; install it with: apt-get install %s", err, Program)
	}
	return path, nil
}

// Config configures a server.
type Config struct {
	// Dir is an existing, empty directory for the server alone. The server keeps it open as file descriptor DirFD, by
	// which it is found again.
	Dir string
	// UID is the user that the server runs as, with no capability but that to bind ports below 1024; 0: the current
	// user.
	UID int
	// Namespace is the path of a network namespace, in which the server creates the interface eth0. If empty, the
	// server exchanges packets over a socket instead, and ends when its lifeline is closed.
	Namespace string
	Ports     []vmm.PortForward
	Subnet    netip.Prefix // see vmm.UserNetwork
}

// DirFD is the descriptor of Config.Dir in the server.
const DirFD = 3

// Server is a running server. It is a child of this process; this package does not reap it.
type Server struct {
	PID    int
	Socket *os.File // packets; nil with a namespace
	Life   *os.File // the lifeline: the server ends when its last copy is closed; nil with a namespace
}

// forward is a request to the server's API.
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

// PortsFree returns an error that names the ports that cannot be listened on, with the reasons, which the server does
// not report.
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
