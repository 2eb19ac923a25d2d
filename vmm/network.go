package vmm

import (
	"errors"
	"fmt"
	"net/netip"
)

// NIC is a network interface of the machine. It is alone on a network that a host process emulates: that process
// forwards connections to other hosts as its own, so no privileges are needed. The host's loopback addresses are not
// reachable. Addresses are those of [UserNetwork].
//
// With a Namespace, the NIC instead replaces an interface of that network namespace: packets that arrive on Link go to
// the machine, and packets of the machine leave by Link. If the machine is the host itself, there is no Link: the
// container joins the namespace.
type NIC struct {
	Slot  uint32        `json:"slot,omitempty"`
	Ports []PortForward `json:"ports,omitempty"` // not with a Namespace
	// Subnet of the emulated network: see UserNetwork.
	Subnet netip.Prefix `json:"subnet,omitzero"`
	// Namespace is the path of an existing network namespace of the host.
	Namespace string `json:"namespace,omitempty"`
	Link      *Link  `json:"link,omitempty"`
}

// Link is a network interface of an existing network namespace.
type Link struct {
	Name      string         `json:"name"`
	MAC       string         `json:"mac"` // the machine's interface has the same
	MTU       uint32         `json:"mtu"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	Routes    []Route        `json:"routes,omitempty"`
}

// Route is a route over a Link.
type Route struct {
	To      netip.Prefix `json:"to"`
	Gateway netip.Addr   `json:"gateway,omitzero"` // not valid: the destination is on the link
	OnLink  bool         `json:"onLink,omitempty"` // the gateway is on the link, whatever the addresses
	Source  netip.Addr   `json:"source,omitzero"`
	Metric  uint32       `json:"metric,omitempty"`
}

// PortForward forwards a port of the host to a container.
type PortForward struct {
	Protocol  string `json:"protocol"`         // "tcp" or "udp"
	HostIP    string `json:"hostIP,omitempty"` // an IPv4 address; empty: all addresses of the host
	HostPort  uint16 `json:"hostPort"`
	GuestPort uint16 `json:"guestPort"`
}

// UserAddresses are the addresses on an emulated network.
type UserAddresses struct {
	Address      netip.Prefix // of the container
	Gateway, DNS netip.Addr
}

// UserNetwork returns the addresses on the emulated network of a NIC. subnet is an IPv4 subnet of at least 128
// addresses; the zero value is 10.0.2.0/24.
func UserNetwork(subnet netip.Prefix) UserAddresses {
	if !subnet.IsValid() {
		subnet = DefaultSubnet
	}
	at := func(n byte) netip.Addr {
		b := subnet.Masked().Addr().As4()
		b[3] += n
		return netip.AddrFrom4(b)
	}
	return UserAddresses{Address: netip.PrefixFrom(at(100), subnet.Bits()), Gateway: at(2), DNS: at(3)}
}

// DefaultSubnet is the subnet of an emulated network if none is given.
var DefaultSubnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 2, 0}), 24)

// CheckSubnet returns an error unless p is valid as the subnet of an emulated network.
func CheckSubnet(p netip.Prefix) error {
	if p.IsValid() && (!p.Addr().Is4() || p.Bits() > 25 || p.Bits() < 8 || p != p.Masked()) {
		return fmt.Errorf("subnet %s: use an IPv4 subnet with 8 to 25 bits, such as %s", p, DefaultSubnet)
	}
	return nil
}

// NetworkInterface creates a network namespace for the container with a NIC in it, and a resolv.conf.
type NetworkInterface struct {
	ContainerID string       `json:"containerID"`
	Slot        uint32       `json:"slot,omitempty"`   // of the NIC
	Search      []string     `json:"search,omitempty"` // DNS search domains
	Subnet      netip.Prefix `json:"subnet,omitzero"`  // of the NIC
	// Link is the Link of the NIC, if any. A container can have several; the first creates the namespace.
	Link *Link `json:"link,omitempty"`
	// DNS are the name servers of an existing namespace's network.
	DNS []netip.Addr `json:"dns,omitempty"`
}

// MAC returns the hardware address, by which the guest finds a NIC.
func (d NIC) MAC() string {
	if d.Link != nil {
		return d.Link.MAC
	}
	return fmt.Sprintf("02:53:54:52:00:%02x", byte(d.Slot))
}

// Addr implements Device.
func (d NIC) Addr() string { return fmt.Sprintf("nic %d", d.Slot) }

func (d NIC) String() string {
	s := d.Addr()
	if d.Namespace != "" {
		s += " in the network namespace " + d.Namespace
	}
	if d.Link != nil {
		s += " as " + d.Link.Name
	}
	for _, p := range d.Ports {
		s += " " + p.String()
	}
	return s
}

func (NIC) device() {}

// Host returns the address and port on which the host listens.
func (p PortForward) Host() string {
	ip := p.HostIP
	if ip == "" {
		ip = "0.0.0.0"
	}
	return fmt.Sprintf("%s:%d", ip, p.HostPort)
}

// String formats a forward as docker does: 0.0.0.0:8080->80/tcp.
func (p PortForward) String() string {
	return fmt.Sprintf("%s->%d/%s", p.Host(), p.GuestPort, p.Protocol)
}

// CheckPorts returns an error unless every forward is valid and no two use the same host port.
func CheckPorts(ports []PortForward) error {
	var errs []error
	for i, p := range ports {
		ip, err := netip.ParseAddr(p.HostIP)
		switch {
		case p.Protocol != "tcp" && p.Protocol != "udp":
			errs = append(errs, fmt.Errorf("port %s: protocol %q: use tcp or udp", p, p.Protocol))
		case p.HostPort == 0 || p.GuestPort == 0:
			errs = append(errs, fmt.Errorf("port %s: a port is 1 to 65535", p))
		case p.Protocol == "udp" && ip.IsLoopback():
			errs = append(errs, fmt.Errorf("port %s: UDP replies do not reach a loopback address: "+
				"give another address of the host, or none", p))
		case p.HostIP != "" && (err != nil || !ip.Is4()):
			errs = append(errs, fmt.Errorf("port %s: %q is no IPv4 address", p, p.HostIP))
		}
		for _, q := range ports[:i] {
			if p.overlaps(q) {
				errs = append(errs, fmt.Errorf("port %s: %s has this port of the host already", p, q))
			}
		}
	}
	return errors.Join(errs...)
}

func (p PortForward) overlaps(q PortForward) bool {
	all := func(ip string) bool { return ip == "" || ip == "0.0.0.0" }
	return p.Protocol == q.Protocol && p.HostPort == q.HostPort &&
		(p.HostIP == q.HostIP || all(p.HostIP) || all(q.HostIP))
}

// networkDir is the guest folder with the networks of containers.
const networkDir = "/run/network/"

func (NetworkInterface) mount() {}

// Target implements Mount.
func (g NetworkInterface) Target() string {
	if g.Link != nil {
		return networkDir + g.ContainerID + "/" + g.Link.Name
	}
	return networkDir + g.ContainerID
}

// Key implements Mount.
func (g NetworkInterface) Key(OS) string { return g.Target() }

func (g NetworkInterface) String() string {
	return fmt.Sprintf("network of %s over nic %d", g.ContainerID, g.Slot)
}
