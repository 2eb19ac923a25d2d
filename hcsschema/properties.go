package hcsschema

import "encoding/json"

// PropertyQuery asks for properties of a system or of the service. Without types the answer is the
// basic properties.
type PropertyQuery struct {
	PropertyTypes []string `json:",omitempty"`
}

// Property types.
const (
	PropertyGuestConnection   = "GuestConnection"   // of a system
	PropertyProcessorTopology = "ProcessorTopology" // of the service
)

// States of a compute system.
const (
	StateCreated = "Created"
	StateRunning = "Running"
	StateStopped = "Stopped"
)

// Properties is the answer of HcsGetComputeSystemProperties.
type Properties struct {
	Id                  string               `json:",omitempty"`
	SystemType          string               `json:",omitempty"`
	Owner               string               `json:",omitempty"`
	RuntimeOsType       string               `json:",omitempty"`
	RuntimeId           string               `json:",omitempty"` // the VM's address for Hyper-V sockets
	State               string               `json:",omitempty"`
	Stopped             bool                 `json:",omitempty"`
	ExitType            string               `json:",omitempty"`
	GuestConnectionInfo *GuestConnectionInfo `json:",omitempty"`
}

// GuestConnectionInfo is what the guest agent said of itself.
type GuestConnectionInfo struct {
	SupportedSchemaVersions  []SchemaVersion `json:",omitempty"`
	ProtocolVersion          uint32          `json:",omitempty"`
	GuestDefinedCapabilities json.RawMessage `json:",omitempty"`
}

// ServiceProperties is the answer of HcsGetServiceProperties: one entry per property type asked for.
type ServiceProperties struct {
	Properties []json.RawMessage `json:",omitempty"`
}

// ProcessorTopology is the answer for PropertyProcessorTopology.
type ProcessorTopology struct {
	LogicalProcessorCount uint32 `json:",omitempty"`
}

// ResultError is the document that comes with a failed call.
type ResultError struct {
	Error        int32        `json:",omitempty"`
	ErrorMessage string       `json:",omitempty"`
	ErrorEvents  []ErrorEvent `json:",omitempty"`
}

// ErrorEvent is one cause, as the service's components logged it.
type ErrorEvent struct {
	Message    string `json:",omitempty"`
	StackTrace string `json:",omitempty"`
	Provider   string `json:",omitempty"`
	EventId    uint16 `json:",omitempty"`
	Flags      uint32 `json:",omitempty"`
	Source     string `json:",omitempty"`
}
