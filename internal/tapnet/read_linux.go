package tapnet

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/nsthread"
	"github.com/stratavm/strata/vmm"
)

// linkName matches the supported names of links.
var linkName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}$`)

// maxLinks, maxAddresses and maxRoutes are limits for a namespace, which may be untrusted.
const (
	maxLinks     = 64
	maxAddresses = 64
	maxRoutes    = 256
)

// Check returns an error unless a path is that of a network namespace that can be entered and is not this system's own.
// The error matches ErrNoNamespace or ErrOwn.
func Check(path string) error {
	ns, h, err := enter(path)
	if err != nil {
		return err
	}
	h.Close()
	return ns.Close()
}

// Open opens a network namespace. Its error is that of Check.
func Open(path string) (*os.File, error) {
	ns, err := open(path)
	if err == nil {
		if err = notOwn(ns); err == nil {
			return ns, nil
		}
		ns.Close()
	}
	return nil, inNamespace(path, err)
}

// open opens a network namespace.
func open(path string) (*os.File, error) {
	// The path may be that of a FIFO or a device.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("%w: there is no such file", ErrNoNamespace)
	}
	if err != nil {
		return nil, err
	}
	if err := checkFile(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func checkFile(f *os.File) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return err
	}
	if fs.Type != unix.NSFS_MAGIC {
		return fmt.Errorf("%w: it is a file of another kind (a namespace that was removed leaves such a file, too)",
			ErrNoNamespace)
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil {
		return err
	}
	if kind != unix.CLONE_NEWNET {
		return fmt.Errorf("%w, but one of another kind", ErrNoNamespace)
	}
	return nil
}

// notOwn returns ErrOwn if f is the namespace of this process.
func notOwn(f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	own, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	if os.SameFile(fi, own) {
		return ErrOwn
	}
	return nil
}

// handle returns a netlink handle in a namespace.
func handle(ns *os.File) (*netlink.Handle, error) {
	h, err := nsthread.Handle(ns)
	if errors.Is(err, os.ErrPermission) {
		err = fmt.Errorf("%w: run strata as root", err)
	}
	return h, err
}

// enter is Open and handle.
func enter(path string) (*os.File, *netlink.Handle, error) {
	ns, err := Open(path)
	if err != nil {
		return nil, nil, err
	}
	h, err := handle(ns)
	if err != nil {
		ns.Close()
		return nil, nil, inNamespace(path, err)
	}
	return ns, h, nil
}

// Address returns a non-loopback address of a namespace; ok is false if there is none, or on error.
func Address(path string) (a netip.Addr, ok bool) {
	ns, h, err := enter(path)
	if err != nil {
		return a, false
	}
	defer ns.Close()
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return a, false
	}
	for _, l := range links {
		if l.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		addresses, _ := h.AddrList(l, netlink.FAMILY_ALL) // of those that can be read
		for _, addr := range addresses {
			if ip, ok := addressOf(addr); ok {
				return ip, true
			}
		}
	}
	return a, false
}

// Links returns the non-loopback links of a namespace that have addresses, with their addresses and routes. If the
// namespace cannot be used, the error matches ErrNoNamespace or ErrOwn.
func Links(path string) ([]vmm.Link, error) {
	f, h, err := enter(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	defer h.Close()
	all, err := h.LinkList()
	if err != nil {
		return nil, inNamespace(path, err)
	}
	routes, err := h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, 0) // those of the main table
	if err != nil {
		return nil, inNamespace(path, fmt.Errorf("list the routes: %w", err))
	}
	var out []vmm.Link
	for _, l := range all {
		if l.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		link, err := describe(h, l, routes)
		if err != nil {
			return nil, inNamespace(path, fmt.Errorf("interface %.16q: %w", l.Attrs().Name, err))
		}
		if len(link.Addresses) == 0 {
			continue
		}
		switch {
		case len(out) == maxLinks:
			err = fmt.Errorf("it has more than %d interfaces", maxLinks)
		case !linkName.MatchString(link.Name):
			err = fmt.Errorf("interface %.16q: the name has other characters than letters, digits, '_', '.', '@' and '-'",
				link.Name)
		case len(l.Attrs().HardwareAddr) != 6:
			err = fmt.Errorf("interface %s: it has no hardware address, which a virtual machine needs", link.Name)
		}
		if err != nil {
			return nil, inNamespace(path, err)
		}
		out = append(out, link)
	}
	if len(out) > 0 {
		for _, r := range routes {
			if err := refusedType(r); err != nil {
				return nil, inNamespace(path, err)
			}
		}
	}
	return out, nil
}

// describe returns a link with its addresses and routes; routes are those of the namespace.
func describe(h *netlink.Handle, l netlink.Link, routes []netlink.Route) (vmm.Link, error) {
	a := l.Attrs()
	out := vmm.Link{Name: a.Name, MAC: a.HardwareAddr.String(), MTU: uint32(a.MTU)}
	addresses, err := h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return out, err
	}
	for _, addr := range addresses {
		ip, ok := addressOf(addr)
		if !ok {
			continue
		}
		if addr.Peer != nil {
			return out, fmt.Errorf("address %s: one with a peer (%s) is not supported in a virtual machine", ip, addr.Peer)
		}
		bits, _ := addr.Mask.Size()
		out.Addresses = append(out.Addresses, netip.PrefixFrom(ip, bits))
	}
	if len(out.Addresses) == 0 {
		return out, nil
	}
	for _, r := range routes {
		if !by(r, a.Index) {
			continue
		}
		route, ok, err := routeOf(r)
		if err != nil {
			return out, err
		}
		if ok {
			out.Routes = append(out.Routes, route)
		}
	}
	// Routes without a gateway first, because gateways must be reachable by these.
	slices.SortStableFunc(out.Routes, func(a, b vmm.Route) int {
		return compare(a.Gateway.IsValid(), b.Gateway.IsValid())
	})
	if len(out.Addresses) > maxAddresses || len(out.Routes) > maxRoutes {
		return out, fmt.Errorf("%d addresses and %d routes are more than %d and %d", len(out.Addresses), len(out.Routes),
			maxAddresses, maxRoutes)
	}
	return out, nil
}

// addressOf returns an address; ok is false for IPv6 link-local addresses.
func addressOf(addr netlink.Addr) (ip netip.Addr, ok bool) {
	ip, ok = netip.AddrFromSlice(addr.IP)
	ip = ip.Unmap()
	return ip, ok && !(ip.Is6() && ip.IsLinkLocalUnicast())
}

// by reports whether a route uses the link with an index, possibly among others.
func by(r netlink.Route, index int) bool {
	return r.LinkIndex == index ||
		slices.ContainsFunc(r.MultiPath, func(hop *netlink.NexthopInfo) bool { return hop.LinkIndex == index })
}

// refusedType returns an error for a configured route of a type such as blackhole or unreachable.
func refusedType(r netlink.Route) error {
	if r.Protocol == unix.RTPROT_KERNEL || r.Type == unix.RTN_UNSPEC || r.Type == unix.RTN_UNICAST {
		return nil
	}
	kind := map[int]string{unix.RTN_BLACKHOLE: "blackhole", unix.RTN_UNREACHABLE: "unreachable",
		unix.RTN_PROHIBIT: "prohibit", unix.RTN_THROW: "throw"}[r.Type]
	return fmt.Errorf("route to %s: one of type %s is not supported in a virtual machine", destination(r),
		cmp.Or(kind, fmt.Sprint(r.Type)))
}

// destination formats the destination of a route.
func destination(r netlink.Route) string {
	if r.Dst == nil {
		return "anywhere"
	}
	return r.Dst.String()
}

func compare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// routeOf converts a route; ok is false for routes that the kernel creates by itself.
func routeOf(r netlink.Route) (out vmm.Route, ok bool, err error) {
	if r.Protocol == unix.RTPROT_KERNEL || r.Type != 0 && r.Type != unix.RTN_UNICAST {
		return out, false, nil
	}
	switch {
	case len(r.MultiPath) > 0:
		return out, false, fmt.Errorf("route to %s: one with several gateways (multipath) is not supported in a "+
			"virtual machine", destination(r))
	case r.Via != nil || r.Encap != nil:
		return out, false, fmt.Errorf("route to %s: one with a gateway of another family, or that wraps packets, is "+
			"not supported in a virtual machine", destination(r))
	}
	if r.Dst == nil {
		out.To = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if r.Family == unix.AF_INET6 {
			out.To = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
	} else {
		ip, ok := netip.AddrFromSlice(r.Dst.IP)
		bits, size := r.Dst.Mask.Size()
		if size == 32 {
			ip = ip.Unmap()
		}
		if out.To = netip.PrefixFrom(ip, bits); !ok || !out.To.IsValid() {
			return out, false, fmt.Errorf("route to %v makes no sense", r.Dst)
		}
		if ip.Is6() && (ip.IsLinkLocalUnicast() || ip.IsMulticast()) {
			return out, false, nil
		}
	}
	if gw, ok := netip.AddrFromSlice(r.Gw); ok {
		out.Gateway = gw.Unmap()
	}
	if src, ok := netip.AddrFromSlice(r.Src); ok {
		out.Source = src.Unmap()
	}
	out.OnLink, out.Metric = r.Flags&unix.RTNH_F_ONLINK != 0, uint32(r.Priority)
	return out, true, nil
}
