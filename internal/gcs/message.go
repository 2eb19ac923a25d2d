package gcs

import (
	"encoding/json"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/vmm"
)

// NullContainer addresses the utility VM itself.
const NullContainer = "00000000-0000-0000-0000-000000000000"

// ProtocolVersion is the only version there is.
const ProtocolVersion = 4

// Ports that are fixed. Streams of processes come on PortStdio and above, never the same one twice.
const (
	PortEntropy uint32 = 1
	PortLog     uint32 = 109
	PortPlan9   uint32 = 564
	PortBridge  uint32 = 0x40000000
	PortStdio   uint32 = 0x40000001
)

// InfiniteTimeout is the TimeoutInMs of a WaitForProcess that waits as long as it takes.
const InfiniteTimeout uint32 = 0xffffffff

// Text is a JSON document that travels as a JSON string.
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

// RequestBase begins every request.
type RequestBase struct {
	ContainerId string
	ActivityId  string
}

// Base returns access to the base of any request.
func (b *RequestBase) Base() *RequestBase { return b }

// ResponseBase begins every answer.
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

// Capabilities are what a guest says of itself.
type Capabilities struct {
	SendHostCreateMessage    bool                     `json:",omitempty"`
	SendHostStartMessage     bool                     `json:",omitempty"`
	SupportedSchemaVersions  []Version                `json:",omitempty"`
	RuntimeOsType            string                   `json:",omitempty"`
	GuestDefinedCapabilities GuestDefinedCapabilities `json:"GuestDefinedCapabilities"`
}

// GuestDefinedCapabilities are optional parts of the protocol. StrataAgent is ours: the version of what
// our agent understands beyond the common protocol, 0 for any other guest; StrataMaxRequest the largest
// request it reads, in bytes.
type GuestDefinedCapabilities struct {
	NamespaceAddRequestSupported  bool   `json:",omitempty"`
	SignalProcessSupported        bool   `json:",omitempty"`
	DumpStacksSupported           bool   `json:",omitempty"`
	DeleteContainerStateSupported bool   `json:",omitempty"`
	StrataAgent                   uint32 `json:",omitempty"`
	StrataMaxRequest              uint32 `json:",omitempty"`
}

// CreateRequest makes a container known to the guest.
type CreateRequest struct {
	RequestBase
	ContainerConfig   Text // a ContainerConfig
	SupportedVersions *SupportedVersions
}

// SupportedVersions has to be sent and means nothing any more.
type SupportedVersions struct {
	MinimumVersion         string
	MaximumVersion         string
	MinimumProtocolVersion uint32
	MaximumProtocolVersion uint32
}

// ContainerConfig is the document of a Linux container.
type ContainerConfig struct {
	SchemaVersion    Version
	OciBundlePath    string      `json:",omitempty"`
	OciSpecification *specs.Spec `json:",omitempty"`
	ScratchDirPath   string      `json:",omitempty"`
	// StrataInstance is ours: a name for this container among those of its id, made up by the host. The container takes
	// the place of another one in which nothing runs, and its first process is started by the request with that name.
	StrataInstance string `json:",omitempty"`
}

// EmptyRequest is the request of Start, Shutdown, DumpStacks and DeleteContainerState.
type EmptyRequest struct{ RequestBase }

// EmptyResponse is the answer that says no more than the outcome.
type EmptyResponse struct{ ResponseBase }

// ExecuteRequest starts a process.
type ExecuteRequest struct {
	RequestBase
	Settings ExecuteSettings
}

// ExecuteSettings say what to run and on which ports its streams are awaited.
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
	StrataMakeDir     bool              `json:",omitempty"` // ours: a working directory that is missing is created
	StrataInstance    string            `json:",omitempty"` // ours: see ContainerConfig
}

// ExecuteResponse names the process.
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
	// StrataOutOfMemory is ours: the process was killed in a container that reached a memory limit.
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

// ResizeRequest tells a terminal its size.
type ResizeRequest struct {
	RequestBase
	ProcessId uint32
	Height    uint16
	Width     uint16
}

// PropertiesRequest asks for properties of a container, or of the VM.
type PropertiesRequest struct {
	RequestBase
	Query Text // a PropertyQuery
}

// PropertiesResponse holds them.
type PropertiesResponse struct {
	ResponseBase
	Properties Text
}

// PropertyQuery names the properties wanted. StrataOffset goes on where the list of mounts of an
// earlier answer stopped.
type PropertyQuery struct {
	PropertyTypes []string `json:",omitempty"`
	StrataOffset  int      `json:",omitempty"`
}

// PropertyMounts is the property of the VM that lists its mounts. Only our agent knows it.
const PropertyMounts = "StrataMounts"

// PropertyProcesses lists the processes of a container.
const PropertyProcesses = "ProcessList"

// PropertyStats is what a container uses. Only our agent knows it.
const PropertyStats = "StrataStatistics"

// Properties is the document in a PropertiesResponse.
type Properties struct {
	StrataStatistics *vmm.ContainerStats `json:",omitempty"`

	ProcessList  []ProcessDetails `json:",omitempty"`
	StrataMounts []Mount          `json:",omitempty"`
	StrataNext   int              `json:",omitempty"` // the offset to go on at; 0: no more
}

// ProcessDetails is one process of a container.
type ProcessDetails struct{ ProcessId uint32 }

// ModifyRequest changes what the guest has. Request is a hcsschema.GuestRequest.
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

// UnmarshalJSON accepts what protocol members hold: a string. It refuses a bare document, with a
// hint, because the two are easily mixed up.
func (t *Text) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("a JSON document inside a JSON string is wanted: %w", err)
	}
	*t = Text(s)
	return nil
}
