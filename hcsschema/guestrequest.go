package hcsschema

// RequestType is the verb of a ModifySettingRequest and of a guest request.
type RequestType string

// The verbs that layers and their devices use.
const (
	RequestAdd    RequestType = "Add"
	RequestRemove RequestType = "Remove"
	RequestUpdate RequestType = "Update"
	RequestPreAdd RequestType = "PreAdd" // networking only
)

// ResourceType names what a guest request acts on.
type ResourceType string

// The guest resources that have to do with storage.
const (
	ResourceMappedDirectory   ResourceType = "MappedDirectory"
	ResourceMappedVirtualDisk ResourceType = "MappedVirtualDisk"
	ResourceCombinedLayers    ResourceType = "CombinedLayers"
	ResourceVPMemDevice       ResourceType = "VPMemDevice"
	ResourceSCSIDevice        ResourceType = "SCSIDevice" // Linux guests since 2023; Remove only
	ResourceNetwork           ResourceType = "Network"
	ResourceVirtioFS          ResourceType = "StrataVirtioFS"       // of Strata's own agent
	ResourceConstraints       ResourceType = "ContainerConstraints" // of a container
	ResourcePaused            ResourceType = "StrataPaused"         // of a container, and of Strata's own agent
	ResourceWCOWBlockCims     ResourceType = "WCOWBlockCims"
	// Of Strata's own agent too. Add holds the VM: it does nothing that a host asks for until Update, with a
	// TemplateRenewal.
	ResourceTemplate ResourceType = "StrataTemplate"
)

// TemplateRenewal makes a VM that was held one of its own. For a VM that is not held it means nothing.
type TemplateRenewal struct {
	Entropy []byte // 32 bytes or more that nobody else is given
	Time    int64  // of the host, in nanoseconds since 1970
}

// GuestRequest is what the host asks of the agent inside a utility VM: alone over the guest
// protocol, or inside a ModifySettingRequest when HCS owns the guest connection.
type GuestRequest struct {
	RequestType  RequestType  `json:",omitempty"`
	ResourceType ResourceType `json:",omitempty"`
	Settings     any          `json:",omitempty"`
}

// LCOWMappedVirtualDisk mounts a SCSI disk in a Linux guest. An empty MountPath only waits for
// the disk (Add) or only releases it (Remove). Controller and LUN 0 do not appear on the wire.
type LCOWMappedVirtualDisk struct {
	MountPath        string            `json:",omitempty"`
	Lun              uint8             `json:",omitempty"`
	Controller       uint8             `json:",omitempty"`
	ReadOnly         bool              `json:",omitempty"`
	Encrypted        bool              `json:",omitempty"`
	Options          []string          `json:",omitempty"`
	EnsureFilesystem bool              `json:",omitempty"`
	Filesystem       string            `json:",omitempty"`
	Partition        uint64            `json:",omitempty"` // 1-based; 0 is the whole disk
	BlockDev         bool              `json:",omitempty"` // a symlink to the device instead of a mount
	VerityInfo       *DeviceVerityInfo `json:",omitempty"`
}

// DeviceVerityInfo describes a dm-verity tree that follows the file system on the same device.
type DeviceVerityInfo struct {
	Ext4SizeInBytes int64  `json:",omitempty"` // size of the protected file system, whatever its type
	Version         int    `json:",omitempty"`
	Algorithm       string `json:",omitempty"`
	SuperBlock      bool   `json:",omitempty"`
	RootDigest      string `json:",omitempty"` // lower-case hex
	Salt            string `json:",omitempty"` // lower-case hex
	BlockSize       int    `json:",omitempty"`
}

// SCSIDevice removes a SCSI disk from a Linux guest that does not do so on unmount.
type SCSIDevice struct {
	Controller uint8 `json:",omitempty"`
	Lun        uint8 `json:",omitempty"`
}

// WCOWMappedVirtualDisk mounts a SCSI disk in a Windows guest; the controller is always 0.
type WCOWMappedVirtualDisk struct {
	ContainerPath string `json:",omitempty"`
	Lun           int32  `json:",omitempty"`
}

// LCOWMappedVPMemDevice mounts a persistent-memory device in a Linux guest.
type LCOWMappedVPMemDevice struct {
	DeviceNumber uint32                `json:",omitempty"`
	MountPath    string                `json:",omitempty"`
	MappingInfo  *LCOWVPMemMappingInfo `json:",omitempty"` // nil: the file system covers the device
	VerityInfo   *DeviceVerityInfo     `json:",omitempty"`
}

// LCOWVPMemMappingInfo is a window of a packed persistent-memory device.
type LCOWVPMemMappingInfo struct {
	DeviceOffsetInBytes uint64 `json:",omitempty"`
	DeviceSizeInBytes   uint64 `json:",omitempty"`
}

// LCOWMappedDirectory mounts a Plan9 share in a Linux guest.
type LCOWMappedDirectory struct {
	MountPath string `json:",omitempty"`
	Port      int32  `json:",omitempty"`
	ShareName string `json:",omitempty"`
	ReadOnly  bool   `json:",omitempty"`
}

// LCOWNetworkAdapter puts a network interface of a Linux guest, found by its hardware address, into a network namespace
// that is known by its id. Lists in a string are separated by commas. Name and MTU are Strata's, as some of LCOWRoute.
type LCOWNetworkAdapter struct {
	NamespaceID   string         `json:",omitempty"`
	ID            string         `json:",omitempty"`
	MacAddress    string         `json:",omitempty"`
	DNSSuffix     string         `json:",omitempty"`
	DNSServerList string         `json:",omitempty"`
	IPConfigs     []LCOWIPConfig `json:",omitempty"`
	Routes        []LCOWRoute    `json:",omitempty"`
	Name          string         `json:",omitempty"` // of the interface in the namespace; empty: eth0
	MTU           uint32         `json:",omitempty"` // 0: as it is
}

// LCOWIPConfig is an address of a network interface.
type LCOWIPConfig struct {
	IPAddress    string `json:",omitempty"`
	PrefixLength uint8  `json:",omitempty"`
}

// LCOWRoute is a route by a network interface. OnLink and Source are Strata's.
type LCOWRoute struct {
	NextHop           string `json:",omitempty"` // empty: the destination is on the link
	DestinationPrefix string `json:",omitempty"`
	Metric            uint32 `json:",omitempty"`
	OnLink            bool   `json:",omitempty"` // the next hop is
	Source            string `json:",omitempty"`
}

// LCOWVirtioFS mounts a virtiofs device in a Linux guest whose agent is Strata's. Removal looks at MountPath and Tag.
type LCOWVirtioFS struct {
	MountPath string `json:",omitempty"`
	Tag       string `json:",omitempty"`
	ReadOnly  bool   `json:",omitempty"`
}

// LCOWCombinedLayers stacks mounted layers and a scratch into one root, top-most layer first.
// Without a ScratchPath the root is read-only. Removal sends ContainerRootPath alone.
type LCOWCombinedLayers struct {
	ContainerID       string  `json:",omitempty"`
	ContainerRootPath string  `json:",omitempty"`
	Layers            []Layer `json:",omitempty"`
	ScratchPath       string  `json:",omitempty"`
}

// WCOWCombinedLayers attaches the layer filter to a mounted scratch volume. FilterType must stay
// empty for WCIFS: Windows guests reject members they do not know.
type WCOWCombinedLayers struct {
	ContainerRootPath string               `json:",omitempty"`
	Layers            []Layer              `json:",omitempty"`
	ScratchPath       string               `json:",omitempty"`
	FilterType        FileSystemFilterType `json:",omitempty"`
}

// WCOWBlockCims mounts block CIMs in a Windows guest: the merged one first, then its parents
// top-most first. Name and LUN are always sent.
type WCOWBlockCims struct {
	BlockCIMs   []BlockCIM `json:",omitempty"`
	VolumeGUID  string     `json:",omitempty"`
	MountFlags  uint32     `json:",omitempty"`
	ContainerID string     `json:",omitempty"`
}

// BlockCIM is one composite image on a SCSI disk of the guest.
type BlockCIM struct {
	CimName string
	Lun     int32
}

// ResourceHvSocket tells a Windows guest the addresses of its Hyper-V sockets; Update only.
const ResourceHvSocket ResourceType = "HvSocket"

// HvSocketParent is the address under which a Windows guest knows its host.
const HvSocketParent = "894cc2d6-9d79-424f-93fe-42969ae6d8d1"

// HvSocketAddress are the settings of ResourceHvSocket.
type HvSocketAddress struct {
	LocalAddress  string `json:",omitempty"` // the VM's RuntimeId
	ParentAddress string `json:",omitempty"`
}
