package vmmtest

import (
	"fmt"
	"testing"

	"github.com/stratavm/strata/vmm"
)

func networks(t *testing.T, s *suite) {
	if s.Network == nil && s.Namespace == nil {
		t.Skip("this driver's machine has no networks")
	}
	if s.Network != nil {
		onAndOff(s, s.Network(0), s.Network(1))
	}
	if s.Namespace == nil {
		return
	}
	onAndOff(s, s.Namespace(0), s.Namespace(1))
	if s.Left != nil {
		s.Left()
	}
}

func onAndOff(s *suite, a, b vmm.Change) {
	s.apply(a)
	s.apply(a) // is there already
	s.apply(b)
	s.has(a, b)
	s.apply(a.Inverse())
	s.has(b)
	s.apply(a.Inverse()) // is not there any more
	s.apply(a)
	s.has(a, b)
	s.apply(a.Inverse())
	s.apply(b.Inverse())
	s.has()
}

// ContractNetwork is a Network of Env.
func ContractNetwork(n int) vmm.Change {
	return vmm.Change{Op: vmm.Add, Device: vmm.NIC{Slot: uint32(n)},
		Mount: vmm.NetworkInterface{ContainerID: fmt.Sprintf("contract%d", n), Slot: uint32(n)}}
}

// ContractNamespace is a Namespace of Env: two links for one container, of namespaces that are not there.
func ContractNamespace(n int) vmm.Change {
	link := &vmm.Link{Name: fmt.Sprintf("net%d", n), MAC: fmt.Sprintf("02:00:00:00:00:%02x", n), MTU: 1400}
	return vmm.Change{Op: vmm.Add, Device: vmm.NIC{Slot: uint32(n), Namespace: "/run/netns/contract", Link: link},
		Mount: vmm.NetworkInterface{ContainerID: "linked", Slot: uint32(n), Link: link}}
}
