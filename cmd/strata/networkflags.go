package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-connections/nat"
	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/internal/ocispec"
	"github.com/stratavm/strata/internal/slirp"
	"github.com/stratavm/strata/internal/tapnet"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// Networks of a container, values of --network.
const (
	noNetwork   = "none" // only loopback
	userNetwork = "user" // user-mode networking: outgoing connections are made by this user's process
	hostNetwork = "host" // that of this system
	nsNetwork   = "ns:"  // prefix of the path of an existing network namespace
)

// networkFlags returns the flags for the network of a container.
func networkFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "network", Aliases: []string{"net"}, Value: noNetwork,
			Usage: "none: without a way out; user: reaches others, but not the loopback addresses of this system; " +
				"host: that of this system, with --isolation=process; ns:PATH: the network namespace at PATH, such as one of CNI"},
		&cli.StringSliceFlag{Name: "publish", Aliases: []string{"p"}, Local: true,
			Usage: "`[IP:]PORT:TARGET[/udp]`: a port of this system that leads to the container's port TARGET; " +
				"with --network user, which it means (repeat)"},
	}
}

// networkKind reads the flags of networkFlags.
func networkKind(cmd *cli.Command) (kind string, ports []vmm.PortForward, err error) {
	kind = cmd.String("network")
	if ports, err = publish(cmd); err != nil {
		return "", nil, err
	}
	if len(ports) > 0 && !cmd.IsSet("network") {
		kind = userNetwork
	}
	switch {
	case len(ports) > 0 && strings.HasPrefix(kind, nsNetwork):
		err = usage(cmd, "--publish and --network ns: exclude each other: who made the namespace publishes its ports")
	case strings.HasPrefix(kind, nsNetwork):
	case kind == "bridge" || kind == "default":
		err = usage(cmd, "--network %q: use user, which reaches others, and --publish for those that reach it", kind)
	case kind != noNetwork && kind != hostNetwork && kind != userNetwork:
		err = usage(cmd, "--network %q: use none, user, host or ns:PATH", kind)
	case len(ports) > 0 && kind != userNetwork:
		err = usage(cmd, "--publish and --network %s exclude each other", kind)
	}
	return kind, ports, err
}

// networkInput returns the network of a container of run; nil for none and for that of this system.
func networkInput(cmd *cli.Command) (*uvm.Network, error) {
	kind, ports, err := networkKind(cmd)
	switch {
	case err != nil:
		return nil, err
	case kind == hostNetwork && !inProcess(cmd):
		return nil, notSupported("--network host: not supported in a VM, which does not have the network of this system: " +
			"use --network user, or --isolation=process")
	case kind != noNetwork && kind != hostNetwork && cmd.String("guest") == string(vmm.Windows):
		return nil, notSupported("--network " + kind + ": not supported in Windows VMs")
	case strings.HasPrefix(kind, nsNetwork):
		return namespaceInput(cmd, strings.TrimPrefix(kind, nsNetwork))
	case kind == userNetwork:
		return &uvm.Network{Ports: ports, Search: searchDomains("/etc/resolv.conf"),
			Subnet: freeSubnet(hostPrefixes())}, nil
	}
	return nil, nil
}

// namespaceInput returns the network of a container in a network namespace.
func namespaceInput(cmd *cli.Command, path string) (*uvm.Network, error) {
	paths, err := absolute(cmd, "--network ns:", path)
	if err != nil {
		return nil, err
	}
	n := uvm.Network{Namespace: paths[0]}
	if inProcess(cmd) { // the container joins the namespace itself
		err = tapnet.Check(paths[0])
	} else if n, err = strata.NetworkNamespace(paths[0]); err == nil && len(n.Links) == 0 {
		err = fmt.Errorf("network namespace %s: no interface in it has an address that a VM could have; use "+
			"--isolation=process, or give one an address", paths[0])
	}
	if err != nil {
		return nil, notRun(fmt.Errorf("--network: %w", err))
	}
	n.Search = searchDomains("/etc/resolv.conf")
	n.DNS = nameServers("/etc/resolv.conf")
	return &n, nil
}

// portsFree returns an error if a published port is in use, before a VM is started. It does not check for a running VM
// or this system itself: there, the port may belong to a killed run that is cleaned up first.
func portsFree(ctx context.Context, cmd *cli.Command, n *uvm.Network) error {
	if n == nil || cmd.String("vm") != "" || inProcess(cmd) {
		return nil
	}
	return slirp.PortsFree(ctx, n.Ports)
}

// hostPrefixes returns the networks of this system's interfaces.
func hostPrefixes() (all []netip.Prefix) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil // assume no conflict
	}
	for _, a := range addresses {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			all = append(all, p)
		}
	}
	return all
}

// freeSubnet returns a subnet for a container that does not overlap with used; the zero prefix means the default one.
func freeSubnet(used []netip.Prefix) netip.Prefix {
	free := func(p netip.Prefix) bool { return !slices.ContainsFunc(used, p.Overlaps) }
	if free(vmm.DefaultSubnet) {
		return netip.Prefix{}
	}
	for _, first := range []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 3, 0}), netip.AddrFrom4([4]byte{172, 31, 200, 0}),
		netip.AddrFrom4([4]byte{192, 168, 200, 0})} {
		for n := range byte(50) {
			b := first.As4()
			b[2] += n
			if p := netip.PrefixFrom(netip.AddrFrom4(b), 24); free(p) {
				return p
			}
		}
	}
	return netip.Prefix{}
}

// maxResolver is the maximum size of resolv.conf in bytes.
const maxResolver = 64 << 10

// maxDomains is the maximum number of search domains, as in glibc.
const maxDomains = 6

var searchDomain = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,253}$`)

// searchDomains returns the search domains of a resolv.conf.
func searchDomains(path string) (domains []string) {
	b, err := readSmall(path, maxResolver)
	if err != nil {
		return nil // not all systems have the file
	}
	domains = slices.DeleteFunc(ocispec.ParseResolver(b).Search,
		func(d string) bool { return !searchDomain.MatchString(d) })
	return domains[:min(len(domains), maxDomains)]
}

// maxServers is the maximum number of name servers, as in glibc.
const maxServers = 3

// nameServers returns the name servers of a resolv.conf that can be reached from other network namespaces.
func nameServers(path string) []netip.Addr {
	b, err := readSmall(path, maxResolver)
	if err != nil {
		return nil
	}
	servers := slices.DeleteFunc(ocispec.ParseResolver(b).Servers,
		func(a netip.Addr) bool { return a.IsLoopback() || a.Zone() != "" })
	return servers[:min(len(servers), maxServers)]
}

func notSupported(text string) error {
	return &exitError{exitNotRun, fmt.Errorf("%s: %w", text, errors.ErrUnsupported)}
}

// publish reads --publish.
func publish(cmd *cli.Command) (ports []vmm.PortForward, err error) {
	for _, value := range cmd.StringSlice("publish") {
		mappings, err := nat.ParsePortSpec(value)
		if err != nil {
			return nil, usage(cmd, "--publish %q: %w", value, err)
		}
		for _, m := range mappings {
			p := vmm.PortForward{Protocol: m.Port.Proto(), HostIP: m.Binding.HostIP}
			guest, gerr := strconv.ParseUint(m.Port.Port(), 10, 16)
			host, herr := strconv.ParseUint(m.Binding.HostPort, 10, 16)
			if gerr != nil || herr != nil {
				return nil, usage(cmd, "--publish %q: give the port of this system too, such as 8080:%s", value, m.Port.Port())
			}
			p.HostPort, p.GuestPort = uint16(host), uint16(guest)
			ports = append(ports, p)
		}
	}
	if err := vmm.CheckPorts(ports); err != nil {
		return nil, usage(cmd, "--publish: %w", err)
	}
	return ports, nil
}
