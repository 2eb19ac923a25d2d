package hcs

import (
	"encoding/json"
	"fmt"

	"github.com/stratavm/strata/hcsschema"
)

// bindDescriptor allows only SYSTEM and administrators to listen on the VM's Hyper-V sockets.
const bindDescriptor = "D:P(A;;FA;;;SY)(A;;FA;;;BA)"

// system creates the parts of the create document that both kinds of VMs share. count is the number of processors of
// the VM.
func (o *Options) system(count int32) *hcsschema.ComputeSystem {
	version := hcsschema.V21
	doc := &hcsschema.ComputeSystem{
		Owner: o.Owner, SchemaVersion: &version, ShouldTerminateOnLastHandleClosed: !o.Persistent,
		VirtualMachine: &hcsschema.VirtualMachine{
			StopOnReset: true,
			Chipset:     &hcsschema.Chipset{},
			ComputeTopology: &hcsschema.Topology{
				Memory: &hcsschema.Memory{
					SizeInMB:             o.MemorySizeInMB + o.MemorySizeInMB%2,
					AllowOvercommit:      o.overcommit(),
					EnableDeferredCommit: o.EnableDeferredCommit,
					LowMmioGapInMB:       o.LowMMIOGapInMB,
					HighMmioBaseInMB:     o.HighMMIOBaseInMB,
					HighMmioGapInMB:      o.HighMMIOGapInMB,
				},
				Processor: &hcsschema.Processor{Count: count, Limit: o.ProcessorLimit, Weight: o.ProcessorWeight},
			},
			Devices: &hcsschema.Devices{
				HvSocket: &hcsschema.HvSocket{HvSocketConfig: &hcsschema.HvSocketSystemConfig{
					DefaultBindSecurityDescriptor: bindDescriptor,
				}},
			},
		},
	}
	if o.CPUGroupID != "" {
		doc.VirtualMachine.ComputeTopology.Processor.CpuGroup = &hcsschema.CpuGroup{Id: o.CPUGroupID}
	}
	if o.StorageQoSIopsMaximum > 0 || o.StorageQoSBandwidthMaximum > 0 {
		doc.VirtualMachine.StorageQoS = &hcsschema.StorageQoS{
			IopsMaximum: o.StorageQoSIopsMaximum, BandwidthMaximum: o.StorageQoSBandwidthMaximum}
	}
	return doc
}

func (o *Options) overcommit() bool { return o.AllowOvercommit && !o.FullyPhysicallyBacked }

// encode returns the create document as JSON, with AdditionHCSDocumentJSON merged in.
func (o *Options) encode(doc *hcsschema.ComputeSystem) (string, error) {
	text, err := json.Marshal(doc)
	if err != nil {
		return "", fmt.Errorf("create document of %s: %w", o.ID, err)
	}
	if o.AdditionHCSDocumentJSON == "" {
		return string(text), nil
	}
	var base, addition map[string]any
	if err := json.Unmarshal(text, &base); err != nil {
		return "", fmt.Errorf("create document of %s: %w", o.ID, err)
	}
	if err := json.Unmarshal([]byte(o.AdditionHCSDocumentJSON), &addition); err != nil {
		return "", bad("AdditionHCSDocumentJSON is no JSON object: %w", err)
	}
	text, err = json.Marshal(merge(base, addition))
	if err != nil {
		return "", fmt.Errorf("create document of %s: %w", o.ID, err)
	}
	return string(text), nil
}

// merge merges addition into base: objects member by member, other values are replaced.
func merge(base, addition map[string]any) map[string]any {
	for k, v := range addition {
		inner, isObject := v.(map[string]any)
		old, wasObject := base[k].(map[string]any)
		if isObject && wasObject {
			v = merge(old, inner)
		}
		base[k] = v
	}
	return base
}
