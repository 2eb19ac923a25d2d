package uvm

import (
	"encoding/json"
	"maps"
	"slices"

	"github.com/stratavm/strata/vmm"
)

// Status is a snapshot of the ledger of a VM.
type Status struct {
	Resources []ResourceStatus `json:"resources"`
	Claims    []ClaimStatus    `json:"containers"`
}

// ResourceStatus is one device or guest mount in the ledger.
type ResourceStatus struct {
	State    State      `json:"state"`
	What     vmm.Change `json:"what"` // Add with exactly one half
	Users    int        `json:"users"`
	Retained bool       `json:"retained,omitempty"` // unused; cannot be removed while the VM is running
}

// ClaimStatus is one container in the ledger.
type ClaimStatus struct {
	ID     string          `json:"id"`
	Phase  Phase           `json:"phase"`
	Meta   json.RawMessage `json:"meta,omitempty"`
	Leases []LeaseStatus   `json:"leases"`
}

// LeaseStatus is one resource that a container holds.
type LeaseStatus struct {
	Role      string `json:"role"`
	Kind      Kind   `json:"kind"`
	Addr      string `json:"addr,omitempty"`
	GuestPath string `json:"guestPath,omitempty"`
}

// Empty reports whether no container holds anything and nothing but retained devices is attached.
func (s Status) Empty() bool {
	return len(s.Claims) == 0 && !slices.ContainsFunc(s.Resources, func(r ResourceStatus) bool { return !r.Retained })
}

// Status returns the current ledger.
func (vm *UtilityVM) Status() Status {
	vm.l.mu.Lock()
	defer vm.l.mu.Unlock()
	return replay(vm.l.snapshot()).status()
}

// ReadStatus reads the ledger of a state directory without taking its lock or contacting the machine. While another
// process has the VM open, it returns what that process has written so far.
func ReadStatus(dir string) (Status, error) {
	records, err := readBooks(dir)
	if err != nil {
		return Status{}, err
	}
	return replay(records).status(), nil
}

func (b ledgerState) status() Status {
	users := map[int]int{}
	leases := map[string][]LeaseStatus{}
	for _, id := range slices.Sorted(maps.Keys(b.leases)) {
		le := b.leases[id]
		users[le.Resource]++
		e := b.resources[le.Resource]
		r := &resource{}
		if e.What != nil {
			r.device, r.guest = e.What.Device, e.What.Mount
			if p := b.resources[e.Parent]; p.What != nil {
				r.parent = &resource{device: p.What.Device}
			}
		}
		kind, addr := kindOf(r)
		leases[le.Claim] = append(leases[le.Claim], LeaseStatus{le.Role, kind, addr, le.Path})
	}
	for id, r := range b.resources {
		if r.Parent != 0 && !(r.Retained && users[id] == 0) {
			users[r.Parent]++
		}
	}
	var s Status
	for _, id := range slices.Sorted(maps.Keys(b.resources)) {
		r := b.resources[id]
		if r.What == nil {
			continue
		}
		s.Resources = append(s.Resources, ResourceStatus{State: r.State, What: *r.What,
			Users: users[id], Retained: r.Retained && users[id] == 0})
	}
	for _, id := range slices.Sorted(maps.Keys(b.claims)) {
		c := b.claims[id]
		s.Claims = append(s.Claims, ClaimStatus{ID: id, Phase: c.Phase, Meta: c.Meta, Leases: leases[id]})
	}
	return s
}
