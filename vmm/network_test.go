package vmm

import (
	"strings"
	"testing"
)

func TestCheckPorts(t *testing.T) {
	tcp := func(ip string, host uint16) PortForward {
		return PortForward{Protocol: "tcp", HostIP: ip, HostPort: host, GuestPort: 80}
	}
	udp := PortForward{Protocol: "udp", HostPort: 8080, GuestPort: 53}
	for _, tt := range []struct {
		name  string
		ports []PortForward
		says  string // "": it is accepted
	}{
		{"none", nil, ""},
		{"one port over TCP and UDP", []PortForward{tcp("", 8080), udp}, ""},
		{"two addresses", []PortForward{tcp("127.0.0.1", 8080), tcp("127.0.0.2", 8080)}, ""},
		{"twice", []PortForward{tcp("127.0.0.1", 8080), tcp("127.0.0.1", 8080)}, "already"},
		{"one address and all", []PortForward{tcp("127.0.0.1", 8080), tcp("", 8080)}, "already"},
		{"all twice", []PortForward{tcp("0.0.0.0", 8080), tcp("", 8080)}, "already"},
		{"no port", []PortForward{tcp("", 0)}, "1 to 65535"},
		{"no port of the guest", []PortForward{{Protocol: "tcp", HostPort: 1}}, "1 to 65535"},
		{"protocol", []PortForward{{Protocol: "sctp", HostPort: 1, GuestPort: 1}}, "use tcp or udp"},
		{"IPv6", []PortForward{tcp("::1", 8080)}, "IPv4"},
		{"a name", []PortForward{tcp("localhost", 8080)}, "IPv4"},
		{"UDP on a loopback address", []PortForward{{Protocol: "udp", HostIP: "127.0.0.1", HostPort: 1, GuestPort: 1}},
			"loopback"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := CheckPorts(tt.ports)
			if (err != nil) != (tt.says != "") || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want %q", err, tt.says)
			}
		})
	}
}
