package procs

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/guest/network"
)

// SetNetworks sets where the table asks for networks. Before, no container has one.
func (t *Table) SetNetworks(n network.Networks) { t.networks = n }

// networkOf returns the network that was made for a container; its zero value means that there is none.
func (t *Table) networkOf(container string) (n network.Network) {
	if t.networks != nil {
		n, _ = t.networks.Of(container)
	}
	return n
}

// joinNetwork puts the container of a document into a network.
func joinNetwork(spec *specs.Spec, n network.Network) {
	if n.Namespace == "" {
		return
	}
	others := slices.DeleteFunc(slices.Clone(spec.Linux.Namespaces), func(s specs.LinuxNamespace) bool {
		return s.Type == specs.NetworkNamespace
	})
	spec.Linux.Namespaces = append(others, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: n.Namespace})
}
