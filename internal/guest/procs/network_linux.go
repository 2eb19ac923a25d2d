package procs

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/guest/network"
)

// SetNetworks sets where the table looks up the networks of containers. Before that, no container has one.
func (t *Table) SetNetworks(n network.Networks) { t.networks = n }

// networkOf returns the network of a container, or the zero value if it has none.
func (t *Table) networkOf(container string) (n network.Network) {
	if t.networks != nil {
		n, _ = t.networks.Of(container)
	}
	return n
}

// joinNetwork sets the network namespace of a spec to that of a network, if there is one.
func joinNetwork(spec *specs.Spec, n network.Network) {
	if n.Namespace == "" {
		return
	}
	others := slices.DeleteFunc(slices.Clone(spec.Linux.Namespaces), func(s specs.LinuxNamespace) bool {
		return s.Type == specs.NetworkNamespace
	})
	spec.Linux.Namespaces = append(others, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: n.Namespace})
}
