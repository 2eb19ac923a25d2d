package vmm

import (
	"errors"
	"fmt"
	"net/netip"
)

// NIC is a network interface of the machine, alone on a network that a program of the host's own serves: what is sent
// there to other hosts is sent on as that program's, so that neither side needs rights. The host's loopback addresses
// are not reached. Whoever uses it has the addresses of [UserNetwork].
//
// With a Namespace it takes the place of a network interface there instead: what comes to Link goes to the machine, and
// what the machine sends leaves by Link. On a machine that is the host itself there is no Link: who uses the NIC is in
// the namespace.
type NIC struct {
	Slot  uint32        `json:"slot,omitempty"`
	Ports []PortForward `json:"ports,omitempty"` // not with a Namespace
	// Subnet is that of the served network: see UserNetwork.
	Subnet netip.Prefix `json:"subnet,omitzero"`
	// Namespace is the file of an existing network namespace of the host.
	Namespace string `json:"namespace,omitempty"`
	Link      *Link  `json:"link,omitempty"`
}

// Link is a network interface of an existing namespace.
type Link struct {
	Name      string         `json:"name"`
	MAC       string         `json:"mac"` // which the machine's interface has, too
	MTU       uint32         `json:"mtu"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	Routes    []Route        `json:"routes,omitempty"`
}

// Route is a route by a Link.
type Route struct {
	To      netip.Prefix `json:"to"`
	Gateway netip.Addr   `json:"gateway,omitzero"` // not valid: whoever is meant is on the link
	OnLink  bool         `json:"onLink,omitempty"` // the gateway is, whatever the addresses say
	Source  netip.Addr   `json:"source,omitzero"`
	Metric  uint32       `json:"metric,omitempty"`
}

// PortForward makes a port of the host one of the container's.
type PortForward struct {
	Protocol  string `json:"protocol"`         // "tcp" or "udp"
	HostIP    string `json:"hostIP,omitempty"` // an IPv4 address; empty: all that the host has
	HostPort  uint16 `json:"hostPort"`
	GuestPort uint16 `json:"guestPort"`
}

// UserAddresses are the addresses on a network that the host serves.
type UserAddresses struct {
	Address      netip.Prefix // of whoever uses the NIC
	Gateway, DNS netip.Addr
}

// UserNetwork are the addresses on the network of a NIC that the host serves, in a subnet of IPv4 of at least 128
// addresses; its zero value is 10.0.2.0/24.
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

// DefaultSubnet is that of a NIC that names none.
var DefaultSubnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 2, 0}), 24)

// CheckSubnet returns an error unless a NIC can have a subnet.
func CheckSubnet(p netip.Prefix) error {
	if p.IsValid() && (!p.Addr().Is4() || p.Bits() > 25 || p.Bits() < 8 || p != p.Masked()) {
		return fmt.Errorf("subnet %s: give one of IPv4 with 8 to 25 bits, such as %s", p, DefaultSubnet)
	}
	return nil
}

// NetworkInterface gives the container a network namespace with a NIC in it, and a file for its /etc/resolv.conf.
type NetworkInterface struct {
	ContainerID string       `json:"containerID"`
	Slot        uint32       `json:"slot,omitempty"`   // of the NIC
	Search      []string     `json:"search,omitempty"` // domains that names are looked up in
	Subnet      netip.Prefix `json:"subnet,omitzero"`  // of the NIC
	// Link is that of the NIC, if it has one. A container can have several, the first of which makes the namespace.
	Link *Link `json:"link,omitempty"`
	// DNS are name servers of the network of an existing namespace.
	DNS []netip.Addr `json:"dns,omitempty"`
}

// MAC is the hardware address by which the guest finds a NIC.
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

// Host is where the host listens: an address and a port.
func (p PortForward) Host() string {
	ip := p.HostIP
	if ip == "" {
		ip = "0.0.0.0"
	}
	return fmt.Sprintf("%s:%d", ip, p.HostPort)
}

// String writes a forward as docker does: 0.0.0.0:8080->80/tcp.
func (p PortForward) String() string {
	return fmt.Sprintf("%s->%d/%s", p.Host(), p.GuestPort, p.Protocol)
}

// CheckPorts returns an error unless each forward is complete and no two of them want one port of the host.
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
			errs = append(errs, fmt.Errorf("port %s: answers over UDP do not reach a loopback address: "+
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

// networkDir is where a guest has the networks of its containers.
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
