package applyengine

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"

	"github.com/stratavm/strata/vmm"
)

// Known is what a driver knows to be in a machine: what it found there and what it has applied since. All
// methods may be called concurrently.
type Known struct {
	mounts bool

	mu       sync.Mutex
	devices  map[string]vmm.Device
	mountsAt map[string]vmm.Mount
}

// NewKnown returns a Known of a machine with these devices. With mounts it keeps account of mounts too;
// without, whether something is mounted is for the guest to say.
func NewKnown(mounts bool, devices ...vmm.Device) *Known {
	k := &Known{mounts: mounts, devices: map[string]vmm.Device{}, mountsAt: map[string]vmm.Mount{}}
	for _, d := range devices {
		k.devices[d.Addr()] = d
	}
	return k
}

// Device returns the device at an address, or nil.
func (k *Known) Device(addr string) vmm.Device {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.devices[addr]
}

// Observation returns all that is known.
func (k *Known) Observation() vmm.Observation {
	k.mu.Lock()
	defer k.mu.Unlock()
	return vmm.Observation{
		Devices: slices.Collect(maps.Values(k.devices)),
		Mounts:  slices.Collect(maps.Values(k.mountsAt)),
	}
}

// find reports which halves of an addition are there already. Its error says that something else is.
func (k *Known) find(c vmm.Change, os vmm.OS) (host, guest bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c.Device != nil {
		old, taken := k.devices[c.Device.Addr()]
		if host = taken && reflect.DeepEqual(old, c.Device); taken && !host {
			return false, false, fmt.Errorf("%s: %w by %s", c.Device.Addr(), vmm.ErrOccupied, old)
		}
	}
	if c.Mount != nil {
		old, taken := k.mountsAt[c.Mount.Key(os)]
		if guest = taken && reflect.DeepEqual(old, c.Mount); taken && !guest {
			return false, false, fmt.Errorf("%s: %w by %s", c.Mount.Target(), vmm.ErrOccupied, old)
		}
	}
	return host, guest, nil
}

// note keeps account of a step that was done. What is in doubt stays as it was known.
func (k *Known) note(c vmm.Change, s step, o vmm.Outcome, os vmm.OS) {
	if o != vmm.Done {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if s.host && c.Op == vmm.Remove {
		delete(k.devices, c.Device.Addr())
	} else if s.host {
		k.devices[c.Device.Addr()] = c.Device
	}
	if !s.guest || !k.mounts || c.Mount.Key(os) == "" {
		return
	}
	if c.Op == vmm.Remove {
		delete(k.mountsAt, c.Mount.Key(os))
	} else {
		k.mountsAt[c.Mount.Key(os)] = c.Mount
	}
}
