package strata

import (
	"github.com/stratavm/strata/internal/tapnet"
	"github.com/stratavm/strata/uvm"
)

// ErrNoNamespace is matched by errors about a path that is not a usable network namespace.
var ErrNoNamespace = tapnet.ErrNoNamespace

// NetworkNamespace describes the network of a container that is to join an existing network namespace of this Linux
// host, such as one that a CNI plugin set up: the interfaces that now have addresses, with their addresses and routes.
// Search domains and name servers are left to the caller. The host's own network namespace is an error. It needs root.
//
// For a container in a VM, interfaces of the VM with the same addresses replace those of the namespace while the
// container is mounted; what a VM cannot emulate is an error. For a container on the host itself, a uvm.Network with
// only Namespace set is enough.
func NetworkNamespace(path string) (uvm.Network, error) {
	links, err := tapnet.Links(path)
	return uvm.Network{Namespace: path, Links: links}, err
}
