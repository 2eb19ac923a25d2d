package strata

import (
	"github.com/stratavm/strata/internal/tapnet"
	"github.com/stratavm/strata/uvm"
)

// ErrNoNamespace is matched by errors about a path that is not that of a network namespace which can be used.
var ErrNoNamespace = tapnet.ErrNoNamespace

// NetworkNamespace describes the network of a container that is to be in an existing network namespace of this Linux
// host, such as one of a CNI plugin: the interfaces that have addresses now, with these, and their routes. Domains and
// name servers are left to the caller. The namespace of this system itself is refused. It needs root.
//
// In a VM, interfaces with the same addresses take the place of those of the namespace as long as the container is
// mounted; what a VM cannot have is an error. On this system itself the container is in the namespace, for which a
// uvm.Network with nothing but Namespace will do.
func NetworkNamespace(path string) (uvm.Network, error) {
	links, err := tapnet.Links(path)
	return uvm.Network{Namespace: path, Links: links}, err
}
