// Package tapnet connects virtual machines to existing network namespaces of this host. A link of the namespace keeps
// its addresses, but its packets are redirected to and from a tap device in the same namespace, by an ingress qdisc on
// each of the two with a filter that matches everything.
//
// The tap exists as long as a file descriptor of it is open. The qdisc of the link stays until Disconnect, and drops
// the link's packets after the tap is gone. There is one tap per link, and only its owner changes the qdisc.
package tapnet

import (
	"errors"
	"fmt"
)

var (
	// ErrNoNamespace: a path is not that of a network namespace.
	ErrNoNamespace = errors.New("it is no network namespace")
	// ErrNoLink: a namespace has no such link.
	ErrNoLink = errors.New("the network namespace has no such interface")
	// ErrInUse: the packets of a link are redirected already.
	ErrInUse = errors.New("the interface is in use")
	// ErrOwn: a namespace is that of this system, which would lose its network.
	ErrOwn = errors.New("it is the network of this system itself")
)

// inNamespace adds the namespace to an error.
func inNamespace(path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("network namespace %s: %w", path, err)
}
