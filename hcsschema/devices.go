package hcsschema

// Devices of a VM. An empty Plan9 or a Scsi controller without attachments must be present when
// the VM is created, or nothing can be added to them later.
type Devices struct {
	ComPorts          map[string]ComPort        `json:",omitempty"`
	Scsi              map[string]Scsi           `json:",omitempty"` // by controller: see Controller
	VirtualPMem       *VirtualPMemController    `json:",omitempty"`
	NetworkAdapters   map[string]NetworkAdapter `json:",omitempty"`
	VideoMonitor      *VideoMonitor             `json:",omitempty"`
	Keyboard          *Keyboard                 `json:",omitempty"`
	Mouse             *Mouse                    `json:",omitempty"`
	HvSocket          *HvSocket                 `json:",omitempty"`
	EnhancedModeVideo *EnhancedModeVideo        `json:",omitempty"`
	VirtualSmb        *VirtualSmb               `json:",omitempty"`
	Plan9             *Plan9                    `json:",omitempty"`
}

// ComPort is a serial port that ends in a named pipe of the host.
type ComPort struct {
	NamedPipe           string `json:",omitempty"`
	OptimizeForDebugger bool   `json:",omitempty"`
}

// Scsi is a SCSI controller; attachments are by LUN in decimal.
type Scsi struct {
	Attachments map[string]Attachment `json:",omitempty"`
}

// Attachment is a disk on a SCSI controller.
type Attachment struct {
	Type                      string `json:",omitempty"` // VirtualDisk, PassThru, ExtensibleVirtualDisk
	Path                      string `json:",omitempty"`
	IgnoreFlushes             bool   `json:",omitempty"`
	CachingMode               string `json:",omitempty"`
	NoWriteHardening          bool   `json:",omitempty"`
	ReadOnly                  bool   `json:",omitempty"`
	ExtensibleVirtualDiskType string `json:",omitempty"`
}

// ImageFormat is the format of the file behind a persistent-memory device.
type ImageFormat string

// The formats that the service knows.
const (
	ImageVHD1 ImageFormat = "Vhd1"
	ImageVHDX ImageFormat = "Vhdx"
)

// VirtualPMemController holds persistent-memory devices by slot in decimal.
type VirtualPMemController struct {
	Devices          map[string]VirtualPMemDevice `json:",omitempty"`
	MaximumCount     uint32                       `json:",omitempty"`
	MaximumSizeBytes uint64                       `json:",omitempty"`
	Backing          string                       `json:",omitempty"`
}

// VirtualPMemDevice is a file as a persistent-memory device.
type VirtualPMemDevice struct {
	HostPath    string      `json:",omitempty"`
	ReadOnly    bool        `json:",omitempty"`
	ImageFormat ImageFormat `json:",omitempty"`
}

// VirtualPMemMapping is a file placed on a packed persistent-memory device.
type VirtualPMemMapping struct {
	HostPath    string      `json:",omitempty"`
	ImageFormat ImageFormat `json:",omitempty"`
}

// NetworkAdapter connects the VM to an endpoint of the host's network service.
type NetworkAdapter struct {
	EndpointId string `json:",omitempty"`
	MacAddress string `json:",omitempty"`
}

// VideoMonitor, Keyboard, Mouse and EnhancedModeVideo are there when they are present.
type (
	VideoMonitor struct {
		HorizontalResolution uint16 `json:",omitempty"`
		VerticalResolution   uint16 `json:",omitempty"`
	}
	Keyboard          struct{}
	Mouse             struct{}
	EnhancedModeVideo struct{}
)

// HvSocket configures who may use the VM's Hyper-V sockets.
type HvSocket struct {
	HvSocketConfig *HvSocketSystemConfig `json:",omitempty"`
}

// HvSocketSystemConfig holds security descriptors in SDDL; ServiceTable is by service GUID.
type HvSocketSystemConfig struct {
	DefaultBindSecurityDescriptor    string                           `json:",omitempty"`
	DefaultConnectSecurityDescriptor string                           `json:",omitempty"`
	ServiceTable                     map[string]HvSocketServiceConfig `json:",omitempty"`
}

// HvSocketServiceConfig is the configuration of one service.
type HvSocketServiceConfig struct {
	BindSecurityDescriptor    string `json:",omitempty"`
	ConnectSecurityDescriptor string `json:",omitempty"`
	AllowWildcardBinds        bool   `json:",omitempty"`
	Disabled                  bool   `json:",omitempty"`
}

// VirtualSmb shares folders with a Windows guest.
type VirtualSmb struct {
	Shares                []VirtualSmbShare `json:",omitempty"`
	DirectFileMappingInMB int64             `json:",omitempty"`
}

// VirtualSmbShare is one shared folder. Removal sends the name alone.
type VirtualSmbShare struct {
	Name         string                  `json:",omitempty"`
	Path         string                  `json:",omitempty"`
	AllowedFiles []string                `json:",omitempty"` // full paths; empty: the whole folder
	Options      *VirtualSmbShareOptions `json:",omitempty"`
}

// VirtualSmbShareOptions are spelled as the service spells them.
type VirtualSmbShareOptions struct {
	ReadOnly             bool `json:",omitempty"`
	ShareRead            bool `json:",omitempty"`
	CacheIo              bool `json:",omitempty"`
	NoOplocks            bool `json:",omitempty"`
	TakeBackupPrivilege  bool `json:",omitempty"`
	UseShareRootIdentity bool `json:",omitempty"`
	NoDirectmap          bool `json:",omitempty"`
	NoLocks              bool `json:",omitempty"`
	NoDirnotify          bool `json:",omitempty"`
	VmSharedMemory       bool `json:",omitempty"`
	RestrictFileAccess   bool `json:",omitempty"`
	ForceLevelIIOplocks  bool `json:",omitempty"`
	ReparseBaseLayer     bool `json:",omitempty"`
	PseudoOplocks        bool `json:",omitempty"`
	NonCacheIo           bool `json:",omitempty"`
	PseudoDirnotify      bool `json:",omitempty"`
	SingleFileMapping    bool `json:",omitempty"`
}

// Plan9 shares folders with a Linux guest.
type Plan9 struct {
	Shares []Plan9Share `json:",omitempty"`
}

// Plan9 share flags.
const (
	Plan9ReadOnly           int32 = 0x001
	Plan9LinuxMetadata      int32 = 0x004 // always set
	Plan9RestrictFileAccess int32 = 0x080 // only AllowedFiles are to be seen
)

// Plan9Share is one shared folder. Name and AccessName are the same.
type Plan9Share struct {
	Name         string   `json:",omitempty"`
	AccessName   string   `json:",omitempty"`
	Path         string   `json:",omitempty"`
	Port         int32    `json:",omitempty"`
	Flags        int32    `json:",omitempty"`
	AllowedFiles []string `json:",omitempty"`
}
