package gcs

import (
	"encoding/json"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/vmm"
)

// NullContainer addresses the utility VM itself.
const NullContainer = "00000000-0000-0000-0000-000000000000"

// ProtocolVersion is the only supported version.
const ProtocolVersion = 4

// Fixed ports. Streams of processes use ports from PortStdio on; none is reused.
const (
	PortEntropy uint32 = 1
	PortLog     uint32 = 109
	PortPlan9   uint32 = 564
	PortBridge  uint32 = 0x40000000
	PortStdio   uint32 = 0x40000001
)

// InfiniteTimeout is the TimeoutInMs of a WaitForProcess without a timeout.
const InfiniteTimeout uint32 = 0xffffffff

// Text is a JSON document that is encoded as a JSON string.
type Text string

// EncodeText creates the Text of v.
func EncodeText(v any) (Text, error) {
	b, err := json.Marshal(v)
	return Text(b), err
}

// Decode reads the document into v. An empty Text leaves v alone.
func (t Text) Decode(v any) error {
	if t == "" {
		return nil
	}
	return json.Unmarshal([]byte(t), v)
}

// RequestBase has the fields of every request.
type RequestBase struct {
	ContainerId string
	ActivityId  string
}

// Base returns access to the base of any request.
func (b *RequestBase) Base() *RequestBase { return b }

// ResponseBase has the fields of every response.
type ResponseBase struct {
	Result       HRESULT
	ActivityId   string
	ErrorMessage string        `json:",omitempty"`
	ErrorRecords []ErrorRecord `json:",omitempty"`
}

// Base returns access to the base of any answer.
func (b *ResponseBase) Base() *ResponseBase { return b }

// NegotiateRequest asks for a protocol version.
type NegotiateRequest struct {
	RequestBase
	MinimumVersion uint32
	MaximumVersion uint32
}

// NegotiateResponse reports the version and what the guest can do.
type NegotiateResponse struct {
	ResponseBase
	Version      uint32       `json:",omitempty"`
	Capabilities Capabilities `json:"Capabilities"`
}

// Version is a version of the HCS schema.
type Version struct {
	Major uint32
	Minor uint32
}

// Capabilities are the capabilities of a guest.
type Capabilities struct {
	SendHostCreateMessage    bool                     `json:",omitempty"`
	SendHostStartMessage     bool                     `json:",omitempty"`
	SupportedSchemaVersions  []Version                `json:",omitempty"`
	RuntimeOsType            string                   `json:",omitempty"`
	GuestDefinedCapabilities GuestDefinedCapabilities `json:"GuestDefinedCapabilities"`
}

// GuestDefinedCapabilities are optional parts of the protocol. Extensions of our agent: StrataAgent is the version of
// its extensions, 0 for any other guest; StrataMaxRequest is the largest request it reads, in bytes.
type GuestDefinedCapabilities struct {
	NamespaceAddRequestSupported  bool   `json:",omitempty"`
	SignalProcessSupported        bool   `json:",omitempty"`
	DumpStacksSupported           bool   `json:",omitempty"`
	DeleteContainerStateSupported bool   `json:",omitempty"`
	StrataAgent                   uint32 `json:",omitempty"`
	StrataMaxRequest              uint32 `json:",omitempty"`
}

// CreateRequest creates a container in the guest.
type CreateRequest struct {
	RequestBase
	ContainerConfig   Text // a ContainerConfig
	SupportedVersions *SupportedVersions
}

// SupportedVersions must be sent, but has no meaning any more.
type SupportedVersions struct {
	MinimumVersion         string
	MaximumVersion         string
	MinimumProtocolVersion uint32
	MaximumProtocolVersion uint32
}

// ContainerConfig is the configuration of a Linux container.
type ContainerConfig struct {
	SchemaVersion    Version
	OciBundlePath    string      `json:",omitempty"`
	OciSpecification *specs.Spec `json:",omitempty"`
	ScratchDirPath   string      `json:",omitempty"`
	// StrataInstance is an extension of our agent: a unique name for this instance of the container, chosen by the
	// host. It replaces a container of the same id in which nothing runs. The request that starts its first process
	// must have it.
	StrataInstance string `json:",omitempty"`
}

// EmptyRequest is the request of Start, Shutdown, DumpStacks and DeleteContainerState.
type EmptyRequest struct{ RequestBase }

// EmptyResponse is a response with nothing but the result.
type EmptyResponse struct{ ResponseBase }

// ExecuteRequest starts a process.
type ExecuteRequest struct {
	RequestBase
	Settings ExecuteSettings
}

// ExecuteSettings are the process to run and the ports for its streams.
type ExecuteSettings struct {
	ProcessParameters       Text        // a ProcessParameters
	VsockStdioRelaySettings *StdioPorts `json:",omitempty"`
}

// StdioPorts are the ports on which the host listens for the streams of a process; 0 for none.
type StdioPorts struct {
	StdIn  uint32 `json:",omitempty"`
	StdOut uint32 `json:",omitempty"`
	StdErr uint32 `json:",omitempty"`
}

// ProcessParameters describe a process to a Linux guest.
type ProcessParameters struct {
	CommandLine       string            `json:",omitempty"`
	CommandArgs       []string          `json:",omitempty"`
	WorkingDirectory  string            `json:",omitempty"`
	Environment       map[string]string `json:",omitempty"`
	EmulateConsole    bool              `json:",omitempty"`
	CreateStdInPipe   bool              `json:",omitempty"`
	CreateStdOutPipe  bool              `json:",omitempty"`
	CreateStdErrPipe  bool              `json:",omitempty"`
	ConsoleSize       []uint16          `json:",omitempty"` // height, width
	CreateInUtilityVM bool              `json:",omitempty"`
	OciProcess        *specs.Process    `json:",omitempty"`
	StrataMakeDir     bool              `json:",omitempty"` // our agent: create the working directory if it is missing
	StrataInstance    string            `json:",omitempty"` // our agent: see ContainerConfig
}

// ExecuteResponse has the id of the process.
type ExecuteResponse struct {
	ResponseBase
	ProcessId uint32
}

// WaitRequest waits for the end of a process.
type WaitRequest struct {
	RequestBase
	ProcessId   uint32
	TimeoutInMs uint32
}

// WaitResponse reports how a process ended.
type WaitResponse struct {
	ResponseBase
	ExitCode uint32
	// StrataOutOfMemory is an extension of our agent: the process was killed in a container with OOM kills.
	StrataOutOfMemory bool `json:",omitempty"`
}

// SignalRequest sends a signal to a process. Without options it is SIGKILL.
type SignalRequest struct {
	RequestBase
	ProcessId uint32
	Options   *SignalOptions `json:",omitempty"`
}

// SignalOptions hold a Linux signal number.
type SignalOptions struct{ Signal int }

// ResizeRequest sets the size of a terminal, in characters.
type ResizeRequest struct {
	RequestBase
	ProcessId uint32
	Height    uint16
	Width     uint16
}

// PropertiesRequest queries properties of a container or of the VM.
type PropertiesRequest struct {
	RequestBase
	Query Text // a PropertyQuery
}

// PropertiesResponse holds them.
type PropertiesResponse struct {
	ResponseBase
	Properties Text
}

// PropertyQuery names the properties. StrataOffset is where the list of mounts continues: StrataNext of the previous
// page.
type PropertyQuery struct {
	PropertyTypes []string `json:",omitempty"`
	StrataOffset  int      `json:",omitempty"`
}

// PropertyMounts is the VM's list of mounts, an extension of our agent.
const PropertyMounts = "StrataMounts"

// PropertyProcesses is the list of a container's processes.
const PropertyProcesses = "ProcessList"

// PropertyStats is the resource usage of a container, an extension of our agent.
const PropertyStats = "StrataStatistics"

// Properties is the content of a PropertiesResponse.
type Properties struct {
	StrataStatistics *vmm.ContainerStats `json:",omitempty"`

	ProcessList  []ProcessDetails `json:",omitempty"`
	StrataMounts []Mount          `json:",omitempty"`
	StrataNext   int              `json:",omitempty"` // offset of the next page; 0: this is the last
}

// ProcessDetails is one process of a container.
type ProcessDetails struct{ ProcessId uint32 }

// ModifyRequest modifies resources of the guest. Request is a hcsschema.GuestRequest.
type ModifyRequest struct {
	RequestBase
	Request any
}

// Constraints are the settings of a request that changes the limits of a container.
type Constraints struct{ Linux specs.LinuxResources }

// StacksResponse holds the stacks of the guest's agent.
type StacksResponse struct {
	ResponseBase
	GuestStacks string
}

// How a container ends, as the Type of its Notification: after SIGTERM, after SIGKILL, or by itself.
const (
	ExitGraceful   = "GracefulExit"
	ExitForced     = "ForcedExit"
	ExitUnexpected = "UnexpectedExit"
)

// Notification tells the host that a container has ended.
type Notification struct {
	ContainerId string
	ActivityId  string
	Type        string
	Operation   string
	Result      HRESULT
	ResultInfo  Text `json:",omitempty"`
}

// UnmarshalJSON accepts a JSON string. A bare JSON document is an error with a hint, because the two are easily
// confused.
func (t *Text) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("a JSON document inside a JSON string is wanted: %w", err)
	}
	*t = Text(s)
	return nil
}
