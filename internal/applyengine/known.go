package applyengine

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"

	"github.com/stratavm/strata/vmm"
)

// Known records the devices and mounts of a machine: those found initially, and those changed since. All methods may be
// called concurrently.
type Known struct {
	mounts bool

	mu       sync.Mutex
	devices  map[string]vmm.Device
	mountsAt map[string]vmm.Mount
}

// NewKnown returns a Known with these devices. If mounts is false it does not record mounts, which only the guest knows
// then.
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

// Observation returns all recorded devices and mounts.
func (k *Known) Observation() vmm.Observation {
	k.mu.Lock()
	defer k.mu.Unlock()
	return vmm.Observation{
		Devices: slices.Collect(maps.Values(k.devices)),
		Mounts:  slices.Collect(maps.Values(k.mountsAt)),
	}
}

// find reports which halves of an addition exist already. It is an error if something else is there.
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

// note records a step whose outcome is Done; others change nothing.
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
