package vmm

import (
	"encoding/json"
	"fmt"
)

// The names of the members of the closed sets in JSON. Extend these tables, deviceKind and mountKind for a new Device
// or Mount.
var (
	deviceKinds = kindTable[Device]{
		"scsi":     decodeAs[SCSIDisk, Device],
		"vpmem":    decodeAs[VPMEMDevice, Device],
		"vsmb":     decodeAs[VSMBShare, Device],
		"plan9":    decodeAs[Plan9Share, Device],
		"nic":      decodeAs[NIC, Device],
		"layer":    decodeAs[WritableLayer, Device],
		"virtiofs": decodeAs[VirtioFSShare, Device],
	}
	mountKinds = kindTable[Mount]{
		"disk":      decodeAs[MappedDisk, Mount],
		"pmem":      decodeAs[MappedPMEM, Mount],
		"directory": decodeAs[MappedDirectory, Mount],
		"network":   decodeAs[NetworkInterface, Mount],
		"virtiofs":  decodeAs[MappedVirtioFS, Mount],
		"combined":  decodeAs[CombinedLayers, Mount],
		"blockCIMs": decodeAs[BlockCIMs, Mount],
		"cimVolume": decodeAs[CIMVolume, Mount],
	}
)

type kindTable[T any] map[string]func(json.RawMessage) (T, error)

func decodeAs[V any, T any](raw json.RawMessage) (T, error) {
	var v V
	var none T
	if err := json.Unmarshal(raw, &v); err != nil {
		return none, err
	}
	return any(v).(T), nil
}

func deviceKind(d Device) string {
	switch d.(type) {
	case SCSIDisk:
		return "scsi"
	case VPMEMDevice:
		return "vpmem"
	case VSMBShare:
		return "vsmb"
	case Plan9Share:
		return "plan9"
	case NIC:
		return "nic"
	case VirtioFSShare:
		return "virtiofs"
	case WritableLayer:
		return "layer"
	}
	return ""
}

func mountKind(g Mount) string {
	switch g.(type) {
	case MappedDisk:
		return "disk"
	case MappedPMEM:
		return "pmem"
	case MappedDirectory:
		return "directory"
	case NetworkInterface:
		return "network"
	case MappedVirtioFS:
		return "virtiofs"
	case CombinedLayers:
		return "combined"
	case BlockCIMs:
		return "blockCIMs"
	case CIMVolume:
		return "cimVolume"
	}
	return ""
}

type changeJSON struct {
	Op     Op                         `json:"op"`
	Device map[string]json.RawMessage `json:"device,omitempty"`
	Guest  map[string]json.RawMessage `json:"guest,omitempty"`
}

// MarshalJSON encodes the change with its halves tagged by kind, such as
// {"op":"add","device":{"scsi":{"lun":3,"path":"/l/layer.vhd"}},"guest":{"disk":{"mountPath":"/m"}}}.
func (c Change) MarshalJSON() ([]byte, error) {
	out := changeJSON{Op: c.Op}
	var err error
	if c.Device != nil {
		if out.Device, err = tag(deviceKind(c.Device), c.Device); err != nil {
			return nil, err
		}
	}
	if c.Mount != nil {
		if out.Guest, err = tag(mountKind(c.Mount), c.Mount); err != nil {
			return nil, err
		}
	}
	return json.Marshal(out)
}

func tag(kind string, v any) (map[string]json.RawMessage, error) {
	if kind == "" {
		return nil, fmt.Errorf("vmm: cannot encode %T: it is not in the table of kinds", v)
	}
	raw, err := json.Marshal(v)
	return map[string]json.RawMessage{kind: raw}, err
}

// UnmarshalJSON decodes the result of MarshalJSON.
func (c *Change) UnmarshalJSON(b []byte) error {
	var in changeJSON
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	device, err := untag(deviceKinds, in.Device)
	if err != nil {
		return err
	}
	guest, err := untag(mountKinds, in.Guest)
	if err != nil {
		return err
	}
	*c = Change{Op: in.Op, Device: device, Mount: guest}
	return nil
}

func untag[T any](table kindTable[T], tagged map[string]json.RawMessage) (v T, err error) {
	if len(tagged) == 0 {
		return v, nil
	}
	if len(tagged) > 1 {
		return v, fmt.Errorf("vmm: a change has %d kinds where one is allowed", len(tagged))
	}
	for kind, raw := range tagged {
		decode, ok := table[kind]
		if !ok {
			return v, fmt.Errorf("vmm: unknown kind %q in a change", kind)
		}
		return decode(raw)
	}
	return v, nil
}
