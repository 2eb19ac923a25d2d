package vmm

import (
	"fmt"
	"strings"
)

// Op is the operation of a Change.
type Op uint8

// The operations.
const (
	Add Op = iota + 1
	Remove
	Update
)

var opNames = map[Op]string{Add: "add", Remove: "remove", Update: "update"}

func (o Op) String() string {
	if s, ok := opNames[o]; ok {
		return s
	}
	return fmt.Sprintf("Op(%d)", uint8(o))
}

// MarshalText returns the name of the operation.
func (o Op) MarshalText() ([]byte, error) {
	if _, ok := opNames[o]; !ok {
		return nil, fmt.Errorf("vmm: invalid operation %d", uint8(o))
	}
	return []byte(o.String()), nil
}

// UnmarshalText parses the name of an operation.
func (o *Op) UnmarshalText(b []byte) error {
	for op, name := range opNames {
		if name == string(b) {
			*o = op
			return nil
		}
	}
	return fmt.Errorf("vmm: unknown operation %q", b)
}

// Change is one change of a machine. At least one half is set.
type Change struct {
	Op     Op
	Device Device // what the host attaches or detaches; nil when only the guest acts
	Mount  Mount  // what the guest mounts afterwards, or unmounts before; nil when only the host acts
}

// Inverse returns the Change that undoes c: Add becomes Remove and vice versa. An Update has no inverse and is
// returned unchanged.
func (c Change) Inverse() Change {
	switch c.Op {
	case Add:
		c.Op = Remove
	case Remove:
		c.Op = Add
	}
	return c
}

// HostOnly returns c without its guest half.
func (c Change) HostOnly() Change { c.Mount = nil; return c }

// GuestOnly returns c without its host half.
func (c Change) GuestOnly() Change { c.Device = nil; return c }

// Empty reports whether neither half is set.
func (c Change) Empty() bool { return c.Device == nil && c.Mount == nil }

// String returns one line for logs and dry runs, such as "add scsi 0:3 /layers/7/layer.vhd (ro) + mount
// /run/mounts/m4".
func (c Change) String() string {
	parts := make([]string, 0, 2)
	if c.Device != nil {
		parts = append(parts, c.Device.String())
	}
	if c.Mount != nil {
		parts = append(parts, c.Mount.String())
	}
	return c.Op.String() + " " + strings.Join(parts, " + ")
}

// Device is the closed set of things that a host attaches to a machine: [SCSIDisk], [VPMEMDevice], [VSMBShare],
// [Plan9Share], [VirtioFSShare], [NIC], [WritableLayer].
type Device interface {
	fmt.Stringer
	// Addr returns the address of the device in the machine, such as "scsi 0:3" or "vpmem 2". Two devices with the
	// same address exclude each other.
	Addr() string
	device()
}

// Mount is the closed set of actions of a guest: [MappedDisk], [MappedPMEM], [MappedDirectory], [MappedVirtioFS],
// [NetworkInterface], [CombinedLayers], [BlockCIMs], [CIMVolume].
type Mount interface {
	fmt.Stringer
	// Target returns the mount point in the guest, or the volume GUID of BlockCIMs and CIMVolume. It is empty for a
	// MappedDisk that is not mounted.
	Target() string
	// Key identifies what the action occupies in a guest with the given operating system: two actions with the same
	// key exclude each other. It is empty for a MappedDisk that is not mounted.
	Key(os OS) string
	mount()
}
