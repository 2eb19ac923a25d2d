package hcsschema

// SchemaVersion is the version of the schema that a document follows.
type SchemaVersion struct {
	Major int32 `json:",omitempty"`
	Minor int32 `json:",omitempty"`
}

// V21 is schema version 2.1, which every Windows since build 17763 understands.
var V21 = SchemaVersion{Major: 2, Minor: 1}

// ComputeSystem is the document that HcsCreateComputeSystem takes.
type ComputeSystem struct {
	Owner           string          `json:",omitempty"`
	SchemaVersion   *SchemaVersion  `json:",omitempty"`
	HostingSystemId string          `json:",omitempty"` // of the utility VM a container is to run in
	HostedSystem    any             `json:",omitempty"` // the container's document inside that VM
	Container       *Container      `json:",omitempty"`
	VirtualMachine  *VirtualMachine `json:",omitempty"`
	// ShouldTerminateOnLastHandleClosed ends the system with the process that created it.
	ShouldTerminateOnLastHandleClosed bool `json:",omitempty"`
}

// VirtualMachine describes a utility VM.
type VirtualMachine struct {
	StopOnReset     bool             `json:",omitempty"`
	Chipset         *Chipset         `json:",omitempty"`
	ComputeTopology *Topology        `json:",omitempty"`
	Devices         *Devices         `json:",omitempty"`
	GuestState      *GuestState      `json:",omitempty"`
	RegistryChanges *RegistryChanges `json:",omitempty"`
	StorageQoS      *StorageQoS      `json:",omitempty"`
	// GuestConnection makes the service own the connection to the guest agent.
	GuestConnection *GuestConnection `json:",omitempty"`
}

// Chipset says how the VM boots.
type Chipset struct {
	Uefi                  *Uefi              `json:",omitempty"`
	LinuxKernelDirect     *LinuxKernelDirect `json:",omitempty"`
	IsNumLockDisabled     bool               `json:",omitempty"`
	BaseBoardSerialNumber string             `json:",omitempty"`
	ChassisSerialNumber   string             `json:",omitempty"`
	ChassisAssetTag       string             `json:",omitempty"`
	UseUtc                bool               `json:",omitempty"`
}

// Uefi boots through firmware.
type Uefi struct {
	EnableDebugger       bool           `json:",omitempty"`
	SecureBootTemplateId string         `json:",omitempty"`
	BootThis             *UefiBootEntry `json:",omitempty"`
	Console              string         `json:",omitempty"`
}

// UefiBootEntry is what the firmware loads. With device type "VmbFs" DevicePath is a path in the
// folder VmbFsRootPath of the host, or in the share named "os" when that is empty.
type UefiBootEntry struct {
	DeviceType    string `json:",omitempty"`
	DevicePath    string `json:",omitempty"`
	DiskNumber    int32  `json:",omitempty"`
	OptionalData  string `json:",omitempty"` // a Linux kernel's command line
	VmbFsRootPath string `json:",omitempty"`
}

// LinuxKernelDirect boots a Linux kernel without firmware; it needs build 18286.
type LinuxKernelDirect struct {
	KernelFilePath string `json:",omitempty"`
	InitRdPath     string `json:",omitempty"`
	KernelCmdLine  string `json:",omitempty"`
}

// Topology is memory and processors.
type Topology struct {
	Memory    *Memory    `json:",omitempty"`
	Processor *Processor `json:",omitempty"`
}

// Memory of a VM. Sizes are in MiB; SizeInMB must be even.
type Memory struct {
	SizeInMB              uint64 `json:",omitempty"`
	AllowOvercommit       bool   `json:",omitempty"` // backed by the host's virtual memory
	EnableHotHint         bool   `json:",omitempty"` // invalid without AllowOvercommit
	EnableColdHint        bool   `json:",omitempty"`
	EnableEpf             bool   `json:",omitempty"`
	EnableDeferredCommit  bool   `json:",omitempty"`
	EnableColdDiscardHint bool   `json:",omitempty"`
	LowMmioGapInMB        uint64 `json:",omitempty"`
	HighMmioBaseInMB      uint64 `json:",omitempty"`
	HighMmioGapInMB       uint64 `json:",omitempty"`
}

// Processor of a VM. Limit is in units of 1/1000 percent, Weight is relative (100 is the default).
type Processor struct {
	Count                          int32     `json:",omitempty"`
	Limit                          int32     `json:",omitempty"`
	Weight                         int32     `json:",omitempty"`
	ExposeVirtualizationExtensions bool      `json:",omitempty"`
	CpuGroup                       *CpuGroup `json:",omitempty"`
}

// CpuGroup is a group of host processors that the VM is bound to.
type CpuGroup struct {
	Id string `json:",omitempty"`
}

// GuestState is where firmware variables are kept.
type GuestState struct {
	GuestStateFilePath  string `json:",omitempty"`
	RuntimeStateFile    string `json:"RuntimeStateFilePath,omitempty"`
	GuestStateFileType  string `json:",omitempty"`
	ForceTransientState bool   `json:",omitempty"`
}

// StorageQoS limits all disks of a VM together.
type StorageQoS struct {
	IopsMaximum      int32 `json:",omitempty"`
	BandwidthMaximum int32 `json:",omitempty"` // bytes per second
}

// GuestConnection configures the connection that the service itself keeps to the guest agent.
type GuestConnection struct {
	UseVsock            bool `json:",omitempty"` // a Linux guest
	UseConnectedSuspend bool `json:",omitempty"`
}

// RegistryChanges are applied to a Windows guest's registry before it boots.
type RegistryChanges struct {
	AddValues  []RegistryValue `json:",omitempty"`
	DeleteKeys []RegistryKey   `json:",omitempty"`
}

// RegistryKey names a key of a hive, such as "System".
type RegistryKey struct {
	Hive     string `json:",omitempty"`
	Name     string `json:",omitempty"`
	Volatile bool   `json:",omitempty"`
}

// RegistryValue is one value; which member holds the data follows from Type.
type RegistryValue struct {
	Key         *RegistryKey `json:",omitempty"`
	Name        string       `json:",omitempty"`
	Type        string       `json:",omitempty"` // "String", "DWord", "QWord", …
	StringValue string       `json:",omitempty"`
	BinaryValue string       `json:",omitempty"` // base64
	DWordValue  int32        `json:",omitempty"`
	QWordValue  int32        `json:",omitempty"`
	CustomType  int32        `json:",omitempty"`
}
