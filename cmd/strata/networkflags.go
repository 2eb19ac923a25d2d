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

// Networks that a container can have.
const (
	noNetwork   = "none" // one of its own, without a way out
	userNetwork = "user" // one of its own, from which others are reached as the user that runs it
	hostNetwork = "host" // that of this system
	nsNetwork   = "ns:"  // before a path: that of an existing network namespace
)

// networkFlags say what network a container has.
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

// networkInput returns the network that a container of run is to have. Nil: one without a way out, or this system's.
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

// namespaceInput describes the network of a container that is to be in a network namespace.
func namespaceInput(cmd *cli.Command, path string) (*uvm.Network, error) {
	paths, err := absolute(cmd, "--network ns:", path)
	if err != nil {
		return nil, err
	}
	n := uvm.Network{Namespace: paths[0]}
	if inProcess(cmd) { // the container is in it, whatever is there
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

// portsFree finds ports that are taken before a VM is started for nothing. Those of a VM that runs, or of this system
// itself, may be of a run that was killed, which is taken away first.
func portsFree(ctx context.Context, cmd *cli.Command, n *uvm.Network) error {
	if n == nil || cmd.String("vm") != "" || inProcess(cmd) {
		return nil
	}
	return slirp.PortsFree(ctx, n.Ports)
}

// hostPrefixes are the networks that this system is in.
func hostPrefixes() (all []netip.Prefix) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil // then there is none to clash with
	}
	for _, a := range addresses {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			all = append(all, p)
		}
	}
	return all
}

// freeSubnet is a subnet for a container from which the networks of this system can be reached; not valid: the usual
// one.
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

// maxResolver bounds what is read of resolv.conf, in bytes.
const maxResolver = 64 << 10

// maxDomains bounds the domains that are searched, as resolvers do.
const maxDomains = 6

var searchDomain = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,253}$`)

// searchDomains are the domains in which this system looks up names.
func searchDomains(path string) (domains []string) {
	b, err := readSmall(path, maxResolver)
	if err != nil {
		return nil // there are systems without
	}
	domains = slices.DeleteFunc(ocispec.ParseResolver(b).Search,
		func(d string) bool { return !searchDomain.MatchString(d) })
	return domains[:min(len(domains), maxDomains)]
}

// maxServers bounds the name servers that are asked, as resolvers do.
const maxServers = 3

// nameServers are those of this system that others can ask, too.
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
