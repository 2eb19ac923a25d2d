// Package tapnet connects virtual machines to existing network namespaces of this host. A link of the namespace
// keeps its addresses, and all that comes to it goes to a tap beside it, and what the machine writes to the tap leaves
// by the link: an ingress qdisc on each of the two, with a filter that matches all and redirects it.
//
// A tap is there as long as a descriptor of it is open. The qdisc of the link stays until Disconnect, and
// swallows what comes to the link in the meantime. There is one tap for a link: who has it changes the qdisc.
package tapnet

import (
	"errors"
	"fmt"
)

var (
	// ErrNoNamespace says that a path is not that of a network namespace.
	ErrNoNamespace = errors.New("it is no network namespace")
	// ErrNoLink says that a namespace has no such link.
	ErrNoLink = errors.New("the network namespace has no such interface")
	// ErrInUse says that what comes to a link goes elsewhere already.
	ErrInUse = errors.New("the interface is in use")
	// ErrOwn says that a namespace is that of this system, which would lose its network.
	ErrOwn = errors.New("it is the network of this system itself")
)

// inNamespace says in an error which namespace it is about.
func inNamespace(path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("network namespace %s: %w", path, err)
}
