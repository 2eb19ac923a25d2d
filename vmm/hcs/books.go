package hcs

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"

	"github.com/stratavm/strata/vmm"
)

// books are what this process applied to a machine, and which addresses a change is under way at.
type books struct {
	os      vmm.OS
	mu      sync.Mutex
	devices map[string]vmm.Device
	refused map[string]bool // the guest refused what was to come on top of this device
	mounts  map[string]vmm.Mount
	busy    map[string]chan struct{}
}

func (b *books) init(os vmm.OS) {
	b.os = os
	b.devices, b.mounts = map[string]vmm.Device{}, map[string]vmm.Mount{}
	b.refused, b.busy = map[string]bool{}, map[string]chan struct{}{}
}

// place is what a guest action occupies. The root of a Windows container is the very folder that its
// scratch is mounted at, and does not get in its way.
func (b *books) place(g vmm.Mount) string {
	if _, combined := g.(vmm.CombinedLayers); combined && b.os == vmm.Windows {
		return "filter on " + g.Target()
	}
	return g.Target()
}

// addresses are those that a change occupies: its device, the device its mount rests on, its target.
func addresses(c vmm.Change) []string {
	var out []string
	if c.Device != nil {
		out = append(out, c.Device.Addr())
	}
	switch g := c.Mount.(type) {
	case nil:
		return out
	case vmm.MappedDisk:
		out = append(out, vmm.SCSIAddr(g.Controller, g.LUN))
	case vmm.MappedPMEM:
		out = append(out, vmm.VPMEMDevice{Slot: g.Slot}.Addr())
	case vmm.MappedDirectory:
		out = append(out, vmm.Plan9Share{Name: g.Share}.Addr())
	}
	if target := c.Mount.Target(); target != "" {
		out = append(out, "guest "+target)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// acquire waits until nothing is under way at the addresses and takes all of them, or none when ctx
// ends first.
func (b *books) acquire(ctx context.Context, gone <-chan struct{}, addrs []string) error {
	for {
		b.mu.Lock()
		var wait chan struct{}
		var at string
		for _, a := range addrs {
			if ch := b.busy[a]; ch != nil {
				wait, at = ch, a
				break
			}
		}
		if wait == nil {
			ch := make(chan struct{})
			for _, a := range addrs {
				b.busy[a] = ch
			}
			b.mu.Unlock()
			return nil
		}
		b.mu.Unlock()
		select {
		case <-wait:
		case <-gone:
			return vmm.ErrGone
		case <-ctx.Done():
			return fmt.Errorf("wait for an earlier change at %s: %w", at, context.Cause(ctx))
		}
	}
}

func (b *books) release(addrs []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, a := range addrs {
		if i == 0 {
			close(b.busy[a])
		}
		delete(b.busy, a)
	}
}

// conflict looks for what is at the addresses of an addition: there tells that exactly this is there
// already, err that something else is.
func (b *books) conflict(c vmm.Change) (host, guest bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.Device != nil {
		if old, ok := b.devices[c.Device.Addr()]; ok {
			if !reflect.DeepEqual(old, c.Device) {
				return false, false, fmt.Errorf("%s: %w by %s", c.Device.Addr(), vmm.ErrOccupied, old)
			}
			host = true
		}
	}
	if c.Mount != nil && c.Mount.Target() != "" {
		if old, ok := b.mounts[b.place(c.Mount)]; ok {
			if !reflect.DeepEqual(old, c.Mount) {
				return host, false, fmt.Errorf("%s: %w by %s", c.Mount.Target(), vmm.ErrOccupied, old)
			}
			guest = true
		}
	}
	return host, guest, nil
}

// note records what became of the halves of a change.
func (b *books) note(c vmm.Change, host, guest vmm.Outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.Device != nil {
		addr := c.Device.Addr()
		switch {
		case c.Op == vmm.Remove && host == vmm.Done:
			delete(b.devices, addr)
			delete(b.refused, addr)
		case c.Op != vmm.Remove && host == vmm.Done:
			b.devices[addr] = c.Device
			b.refused[addr] = c.Mount != nil && guest == vmm.NotDone
		}
	}
	if c.Mount != nil && c.Mount.Target() != "" && guest == vmm.Done {
		if c.Op == vmm.Remove {
			delete(b.mounts, b.place(c.Mount))
		} else {
			b.mounts[b.place(c.Mount)] = c.Mount
		}
	}
}

// wasRefused reports whether the guest refused the mount that came with the addition of a device.
func (b *books) wasRefused(addr string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refused[addr]
}

func (b *books) observation() vmm.Observation {
	b.mu.Lock()
	defer b.mu.Unlock()
	return vmm.Observation{
		Devices: slices.Collect(maps.Values(b.devices)),
		Mounts:  slices.Collect(maps.Values(b.mounts)),
	}
}
