package vmmtest

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/stratavm/strata/vmm"
)

// The rules of the world. All methods in this file need Fake.mu.

func (f *Fake) host(op vmm.Op, d vmm.Device) error {
	addr := d.Addr()
	old, taken := f.devices[addr]
	switch op {
	case vmm.Add:
		if taken && !same(old, d) {
			return fmt.Errorf("%s: %w", addr, vmm.ErrOccupied)
		}
		f.devices[addr] = d
	case vmm.Remove:
		for _, g := range f.mounts {
			if taken && vmm.RestsOn(g) == addr {
				return f.violate("%s is detached under %s", addr, g)
			}
		}
		delete(f.devices, addr)
	case vmm.Update:
		if !taken {
			return f.violate("%s is updated but not there", addr)
		}
		f.devices[addr] = d
	}
	return nil
}

func (f *Fake) guest(op vmm.Op, g vmm.Mount) error {
	if g.Target() == "" {
		return nil
	}
	target := g.Key(f.os)
	old, taken := f.mounts[target]
	if op == vmm.Remove {
		if c := f.userOf(target); taken && c != "" {
			return fmt.Errorf("unmount %s: %w by %s", target, vmm.ErrBusy, c)
		}
		delete(f.mounts, target)
		return nil
	}
	if taken && !same(old, g) {
		return fmt.Errorf("%s: %w", target, vmm.ErrOccupied)
	}
	if on := vmm.RestsOn(g); on != "" && f.devices[on] == nil {
		return f.violate("%s is mounted without its device", g)
	}
	if c, ok := g.(vmm.CombinedLayers); ok && f.os == vmm.Linux {
		for _, layer := range c.Layers {
			if f.mounts[layer.Path] == nil {
				return f.violate("%s is combined without its layer %s", target, layer.Path)
			}
		}
		if c.ScratchPath != "" && f.below(c.ScratchPath) == "" {
			return f.violate("%s is combined without its scratch %s", target, c.ScratchPath)
		}
	}
	f.mounts[target] = g
	return nil
}

// below returns the mount of a device that a path lies in.
func (f *Fake) below(path string) string {
	for target, g := range f.mounts {
		if vmm.RestsOn(g) != "" && (path == target || strings.HasPrefix(path, target+"/")) {
			return target
		}
	}
	return ""
}

// userOf names what keeps a mount in use: a holder, or the combined root that needs it.
func (f *Fake) userOf(target string) string {
	if h := f.holders[target]; h != "" {
		return h
	}
	for _, g := range f.mounts {
		c, ok := g.(vmm.CombinedLayers)
		if !ok || g.Key(f.os) == target {
			continue
		}
		if f.os == vmm.Windows && c.RootPath == target {
			return g.Key(f.os)
		}
		for _, layer := range c.Layers {
			if layer.Path == target {
				return c.RootPath
			}
		}
		if c.ScratchPath != "" && f.below(c.ScratchPath) == target {
			return c.RootPath
		}
	}
	return ""
}

func same(a, b any) bool { return reflect.DeepEqual(a, b) }

func (f *Fake) violate(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	f.violations = append(f.violations, text)
	return errors.New(text)
}
