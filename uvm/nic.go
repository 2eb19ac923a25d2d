package uvm

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/stratavm/strata/vmm"
)

// Network describes the network of a container: one of its own that the host emulates or, with Namespace set, an
// existing one.
type Network struct {
	Ports  []vmm.PortForward // host ports forwarded to the container; not with a Namespace
	Search []string          // DNS search domains
	Subnet netip.Prefix      // of an emulated network: see vmm.UserNetwork

	// Namespace is the path of a network namespace of the host. In a VM, the container gets Links, with their
	// addresses and routes, and DNS as name servers. On the host itself, it joins the namespace.
	Namespace string
	Links     []vmm.Link
	DNS       []netip.Addr
}

// check returns an error if the network is invalid.
func (n Network) check() error {
	if n.Namespace == "" && len(n.Links) > 0 || n.Namespace != "" && len(n.Ports) > 0 {
		return fmt.Errorf("links need a namespace, and ports cannot be forwarded with one")
	}
	if err := vmm.CheckSubnet(n.Subnet); err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, l := range n.Links {
		if seen[l.Name] {
			return fmt.Errorf("duplicate link %q", l.Name)
		}
		seen[l.Name] = true
	}
	return vmm.CheckPorts(n.Ports)
}

// AttachNetwork attaches the network of a container: one NIC, or one per link of a namespace, in the lowest free
// slots. In a VM, a namespace without links is an error. Errors match ErrNotSupported if the VM has no such networks,
// and ErrNoAvailableLocation if it has no free slot; NICs attached before the error stay in the claim.
func (vm *UtilityVM) AttachNetwork(ctx context.Context, c *Claim, role string, n Network) ([]*Lease, error) {
	limits := vm.Limits()
	if limits.NICs == 0 {
		return nil, fmt.Errorf("network of %s: %w", c.id, ErrNotSupported)
	}
	if err := n.check(); err != nil {
		return nil, fmt.Errorf("network of %s: %w", c.id, err)
	}
	if n.Namespace == "" || limits.HostNetworks {
		n.Links = nil
		le, err := vm.attachNIC(ctx, c, role, n, nil)
		if err != nil {
			return nil, err
		}
		return []*Lease{le}, nil
	}
	if len(n.Links) == 0 {
		return nil, fmt.Errorf("network of %s: network namespace %s: no interface in it has an address", c.id, n.Namespace)
	}
	var leases []*Lease
	for _, link := range n.Links {
		le, err := vm.attachNIC(ctx, c, role, n, &link)
		if err != nil {
			return leases, err
		}
		leases = append(leases, le)
	}
	return leases, nil
}

func (vm *UtilityVM) attachNIC(ctx context.Context, c *Claim, role string, n Network, link *vmm.Link) (*Lease, error) {
	l, slots := vm.l, vm.Limits().NICs
	key := "nic|" + c.id
	if link != nil {
		key += "|" + link.Name
	}
	return l.acquire(ctx, c, role, want{
		deviceKey: key, exclusive: true,
		device: func() (vmm.Device, error) {
			slot := l.slots.nics.firstFree()
			if slot < 0 {
				return nil, fmt.Errorf("network of %s: %w: all %d network interfaces of the VM are taken; "+
					"use another VM, or no network", c.id, ErrNoAvailableLocation, slots)
			}
			return vmm.NIC{Slot: uint32(slot), Ports: n.Ports, Subnet: n.Subnet, Namespace: n.Namespace,
				Link: link}, nil
		},
		mountKey: key + "|interface",
		mount: func(d vmm.Device) (vmm.Mount, error) {
			return vmm.NetworkInterface{ContainerID: c.id, Slot: d.(vmm.NIC).Slot, Search: n.Search, Subnet: n.Subnet,
				Link: link,
				DNS:  n.DNS}, nil
		},
	})
}
