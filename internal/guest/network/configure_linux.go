package network

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/nsthread"
	"github.com/stratavm/strata/internal/ocispec"
)

// config is a checked LCOWNetworkAdapter.
type config struct {
	name      string // of the interface in the container
	mac       net.HardwareAddr
	mtu       int // 0: unchanged
	addresses []netip.Prefix
	routes    []route
	dns       []netip.Addr
	search    []string
}

// route is a checked LCOWRoute. An invalid gateway or source is unset.
type route struct {
	to      netip.Prefix
	gateway netip.Addr
	source  netip.Addr
	metric  int
	onLink  bool
}

// Limits of a host's request.
const (
	maxID        = 128
	maxAddresses = 64
	maxRoutes    = 256
	maxMTU       = 65535
	minMTU       = 68
	maxServers   = 8
	maxDomains   = 32
	maxDomain    = 253
)

// checkID returns an error for an id that is not safe as a file name.
func checkID(id string) error {
	for i, c := range []byte(id) {
		alnum := c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return fmt.Errorf("namespace id %q: %w", id, gcsserver.ErrInvalid)
		}
	}
	if id == "" || len(id) > maxID {
		return fmt.Errorf("namespace id of %d bytes: %w", len(id), gcsserver.ErrInvalid)
	}
	return nil
}

func parse(s hcsschema.LCOWNetworkAdapter) (c config, err error) {
	invalid := func(what, value string) (config, error) {
		return config{}, fmt.Errorf("network of %s: %s %q: %w", s.NamespaceID, what, value, gcsserver.ErrInvalid)
	}
	if c.mac, err = net.ParseMAC(s.MacAddress); err != nil {
		return invalid("hardware address", s.MacAddress)
	}
	if c.name = cmp.Or(s.Name, defaultName); !interfaceName.MatchString(c.name) || c.name == "lo" {
		return invalid("name of an interface", s.Name)
	}
	if c.mtu = int(s.MTU); s.MTU != 0 && (s.MTU < minMTU || s.MTU > maxMTU) {
		return invalid("MTU", fmt.Sprint(s.MTU))
	}
	for _, a := range s.IPConfigs {
		ip, err := netip.ParseAddr(a.IPAddress)
		if err != nil || ip.Zone() != "" || len(c.addresses) == maxAddresses {
			return invalid("address", a.IPAddress)
		}
		p := netip.PrefixFrom(ip, int(a.PrefixLength))
		if !p.IsValid() {
			return invalid("prefix length", fmt.Sprint(a.PrefixLength))
		}
		c.addresses = append(c.addresses, p)
	}
	for _, r := range s.Routes {
		route, ok := parseRoute(r)
		if !ok || len(c.routes) == maxRoutes {
			return invalid("route", fmt.Sprintf("%s by %s from %s", r.DestinationPrefix, r.NextHop, r.Source))
		}
		c.routes = append(c.routes, route)
	}
	for _, server := range list(s.DNSServerList) {
		ip, err := netip.ParseAddr(server)
		if err != nil || len(c.dns) == maxServers {
			return invalid("name server", server)
		}
		c.dns = append(c.dns, ip)
	}
	for _, domain := range list(s.DNSSuffix) {
		if !isDomain(domain) || len(c.search) == maxDomains {
			return invalid("domain", domain)
		}
		c.search = append(c.search, domain)
	}
	return c, nil
}

func parseRoute(r hcsschema.LCOWRoute) (out route, ok bool) {
	to, err := netip.ParsePrefix(r.DestinationPrefix)
	out = route{to: to.Masked(), metric: int(r.Metric & math.MaxInt32), onLink: r.OnLink}
	for _, a := range []struct {
		text string
		to   *netip.Addr
	}{{r.NextHop, &out.gateway}, {r.Source, &out.source}} {
		if a.text == "" {
			continue
		}
		ip, aerr := netip.ParseAddr(a.text)
		if aerr != nil || ip.Zone() != "" || ip.Is4() != to.Addr().Is4() {
			return out, false
		}
		*a.to = ip
	}
	return out, err == nil
}

func list(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}

func isDomain(s string) bool {
	for _, c := range []byte(s) {
		alnum := c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		if !alnum && c != '.' && c != '-' && c != '_' {
			return false
		}
	}
	return len(s) <= maxDomain
}

// resolvConf returns the content of the container's /etc/resolv.conf.
func (c config) resolvConf() []byte {
	return []byte(ocispec.Resolver{Servers: c.dns, Search: c.search}.String())
}

// defaultName is an interface's name in the container if the host gives none.
const defaultName = "eth0"

// interfaceName matches valid names of interfaces.
var interfaceName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}$`)

// connect moves the interface into the namespace and configures it. It waits until the interface appears.
func (c config) connect(ctx context.Context, namespace string) error {
	link, err := c.find(ctx)
	if err != nil {
		return err
	}
	ns, h, err := enter(namespace)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	if err := netlink.LinkSetNsFd(link, int(ns.Fd())); err != nil {
		return fmt.Errorf("move %s into its namespace: %w", link.Attrs().Name, err)
	}
	return c.configure(h)
}

// enter opens a namespace, and a netlink handle in it. The caller must close both.
func enter(namespace string) (*os.File, *netlink.Handle, error) {
	ns, err := os.Open(namespace)
	if err != nil {
		return nil, nil, err
	}
	h, err := nsthread.Handle(ns)
	if err != nil {
		ns.Close()
		return nil, nil, err
	}
	return ns, h, nil
}

// disconnect moves the interface back to the VM's namespace. A missing interface or namespace is no error.
func (c config) disconnect(namespace string) error {
	ns, h, err := enter(namespace)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	link, err := c.among(h)
	if errors.Is(err, gcsserver.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	ours, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer ours.Close()
	// Renamed, because the VM's namespace may have an interface of its name.
	if err := errors.Join(h.LinkSetDown(link), h.LinkSetName(link, fmt.Sprintf("was%d", link.Attrs().Index)),
		h.LinkSetNsFd(link, int(ours.Fd()))); err != nil {
		return fmt.Errorf("move %s out of its namespace: %w", c.name, err)
	}
	return nil
}

const (
	findTimeout  = 20 * time.Second // for an interface that the host has hot-plugged to appear
	findInterval = 5 * time.Millisecond
)

// find returns the interface with c.mac in the VM's namespace. It waits until it appears.
func (c config) find(ctx context.Context) (netlink.Link, error) {
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	for {
		links, err := netlink.LinkList()
		if err != nil {
			return nil, fmt.Errorf("list the network interfaces: %w", err)
		}
		for _, l := range links {
			if bytes.Equal(l.Attrs().HardwareAddr, c.mac) {
				return l, nil
			}
		}
		select {
		case <-time.After(findInterval):
		case <-ctx.Done():
			return nil, fmt.Errorf("network interface %s: %w: %w", c.mac, gcsserver.ErrNotFound, context.Cause(ctx))
		}
	}
}

// among returns the interface with c.mac in the handle's namespace.
func (c config) among(h *netlink.Handle) (netlink.Link, error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if bytes.Equal(l.Attrs().HardwareAddr, c.mac) {
			return l, nil
		}
	}
	return nil, fmt.Errorf("network interface %s: %w", c.mac, gcsserver.ErrNotFound)
}

// configure brings up loopback and the interface in a namespace, and sets the interface's name, MTU, addresses and
// routes.
func (c config) configure(h *netlink.Handle) error {
	if lo, err := h.LinkByName("lo"); err != nil {
		return fmt.Errorf("loopback interface: %w", err)
	} else if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("loopback interface: %w", err)
	}
	l, err := c.among(h)
	if err != nil {
		return err
	}
	if err := h.LinkSetName(l, c.name); err != nil {
		return fmt.Errorf("rename %s: %w", l.Attrs().Name, err)
	}
	if c.mtu != 0 {
		if err := h.LinkSetMTU(l, c.mtu); err != nil {
			return fmt.Errorf("MTU %d of %s: %w", c.mtu, c.name, err)
		}
	}
	for _, a := range c.addresses {
		address := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() { // whoever assigned it has checked for duplicates
			address.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(l, address); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("interface %s: %w", c.name, err)
	}
	for _, r := range c.routes {
		if err := h.RouteAdd(r.on(l)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("route to %s by %s: %w", r.to, r.gateway, err)
		}
	}
	return nil
}

// on returns the netlink route over an interface.
func (r route) on(l netlink.Link) *netlink.Route {
	out := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(r.to), Priority: r.metric}
	if r.gateway.IsValid() {
		out.Gw = r.gateway.AsSlice()
	} else {
		out.Scope = netlink.SCOPE_LINK
	}
	if r.source.IsValid() {
		out.Src = r.source.AsSlice()
	}
	if r.onLink {
		out.Flags = int(netlink.FLAG_ONLINK)
	}
	return out
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
