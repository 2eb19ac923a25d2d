package vmm

import "fmt"

// Verity says that a dm-verity hash tree follows the read-only file system on a device, and which root digest it must
// have. If the hash tree does not match, the guest refuses to mount it.
type Verity struct {
	DataBytes  int64  `json:"dataBytes"`           // size of the protected file system
	RootDigest string `json:"rootDigest"`          // lower-case hex
	Salt       string `json:"salt,omitempty"`      // lower-case hex
	Algorithm  string `json:"algorithm,omitempty"` // empty: sha256
	BlockSize  int    `json:"blockSize,omitempty"` // bytes; 0: 4096
	SuperBlock bool   `json:"superBlock,omitempty"`
}

// MappedDisk mounts a SCSI disk or one of its partitions. The guest finds the disk by controller and LUN. With an
// empty MountPath nothing is mounted: the guest only waits for the disk, or on Remove releases it.
type MappedDisk struct {
	MountPath        string   `json:"mountPath,omitempty"`
	Controller       uint8    `json:"controller,omitempty"`
	LUN              uint8    `json:"lun,omitempty"`
	Partition        uint64   `json:"partition,omitempty"` // 1-based; 0 is the whole disk
	ReadOnly         bool     `json:"readOnly,omitempty"`
	Options          []string `json:"options,omitempty"`
	Filesystem       string   `json:"filesystem,omitempty"`       // empty: what the guest detects
	EnsureFilesystem bool     `json:"ensureFilesystem,omitempty"` // format the disk unless it has Filesystem
	Encrypted        bool     `json:"encrypted,omitempty"`
	BlockDev         bool     `json:"blockDev,omitempty"` // a symlink to the device instead of a mount
	Verity           *Verity  `json:"verity,omitempty"`
}

// MappedPMEM mounts a persistent-memory device, or with Size a range of it, read-only.
type MappedPMEM struct {
	Slot      uint32  `json:"slot,omitempty"`
	MountPath string  `json:"mountPath"`
	Offset    uint64  `json:"offset,omitempty"`
	Size      uint64  `json:"size,omitempty"` // 0: the whole device
	Verity    *Verity `json:"verity,omitempty"`
}

// MappedDirectory mounts a Plan9 share.
type MappedDirectory struct {
	MountPath string `json:"mountPath"`
	Share     string `json:"share"`
	ReadOnly  bool   `json:"readOnly,omitempty"`
}

// MappedVirtioFS mounts a VirtioFSShare.
type MappedVirtioFS struct {
	MountPath string `json:"mountPath"`
	Slot      uint32 `json:"slot,omitempty"`
	ReadOnly  bool   `json:"readOnly,omitempty"`
}

// GuestLayer is a layer that is mounted or shared in the guest.
type GuestLayer struct {
	ID   string `json:"id,omitempty"` // layer GUID; Windows only
	Path string `json:"path"`         // guest path
}

// CombinedLayers creates a root from layers, top layer first, and a scratch. On the Windows host itself, RootPath is
// the scratch folder, a WritableLayer, and the root is its volume.
type CombinedLayers struct {
	ContainerID string       `json:"containerID,omitempty"`
	RootPath    string       `json:"rootPath"`
	Layers      []GuestLayer `json:"layers,omitempty"`
	ScratchPath string       `json:"scratchPath,omitempty"` // empty: a read-only root (Linux)
	Filter      string       `json:"filter,omitempty"`      // Windows: empty is WCIFS, "UnionFS" for CIMs
}

// BlockCIM is one composite image on a SCSI disk.
type BlockCIM struct {
	Name string `json:"name"`
	LUN  uint8  `json:"lun"`
}

// BlockCIMs mounts composite images in a Windows guest: the merged one first, then its parents, top layer first.
type BlockCIMs struct {
	VolumeGUID  string     `json:"volumeGUID"` // chosen by the host
	CIMs        []BlockCIM `json:"cims"`
	MountFlags  uint32     `json:"mountFlags,omitempty"`
	ContainerID string     `json:"containerID,omitempty"`
}

// CIMKind says where composite images are stored on a Windows host.
type CIMKind string

// The kinds of composite images.
const (
	CIMFolder      CIMKind = ""       // files in a folder
	CIMBlockDevice CIMKind = "device" // on a raw block device
	CIMBlockFile   CIMKind = "file"   // in a single file
)

// CIMImage is one composite image on a Windows host.
type CIMImage struct {
	Dir  string `json:"dir"` // the folder, or the block device or file itself
	Name string `json:"name"`
}

// CIMVolume mounts composite images on the Windows host itself as one volume: the image, followed by the images that
// it was merged from, if any, top layer first.
type CIMVolume struct {
	VolumeGUID string     `json:"volumeGUID"` // chosen by the caller
	Kind       CIMKind    `json:"kind,omitempty"`
	Images     []CIMImage `json:"images"`
	Digest     []byte     `json:"digest,omitempty"` // the root digest that the image must have
	DAX        bool       `json:"dax,omitempty"`    // map the files directly
}

func (MappedDisk) mount()      {}
func (MappedPMEM) mount()      {}
func (MappedDirectory) mount() {}
func (MappedVirtioFS) mount()  {}
func (CombinedLayers) mount()  {}
func (BlockCIMs) mount()       {}
func (CIMVolume) mount()       {}

// Target implements Mount.
func (g MappedDisk) Target() string { return g.MountPath }

// Key implements Mount.
func (g MappedDisk) Key(OS) string { return g.Target() }

// Target implements Mount.
func (g MappedPMEM) Target() string { return g.MountPath }

// Key implements Mount.
func (g MappedPMEM) Key(OS) string { return g.Target() }

// Target implements Mount.
func (g MappedDirectory) Target() string { return g.MountPath }

// Key implements Mount.
func (g MappedDirectory) Key(OS) string { return g.Target() }

// Target implements Mount.
func (g MappedVirtioFS) Target() string { return g.MountPath }

// Key implements Mount.
func (g MappedVirtioFS) Key(OS) string { return g.Target() }

// Target implements Mount.
func (g CombinedLayers) Target() string { return g.RootPath }

// Key implements Mount. In a Windows guest the layers are a filter on the folder at which the scratch is mounted, and
// do not exclude that mount.
func (g CombinedLayers) Key(os OS) string {
	if os == Windows {
		return "filter on " + g.RootPath
	}
	return g.RootPath
}

// Target implements Mount.
func (g BlockCIMs) Target() string { return g.VolumeGUID }

// Key implements Mount.
func (g BlockCIMs) Key(OS) string { return g.Target() }

// Target implements Mount.
func (g CIMVolume) Target() string { return g.VolumeGUID }

// Key implements Mount.
func (g CIMVolume) Key(OS) string { return g.Target() }

// RestsOn returns the address of the device that a mount is on, or "".
func RestsOn(g Mount) string {
	switch g := g.(type) {
	case MappedDisk:
		return SCSIAddr(g.Controller, g.LUN)
	case MappedPMEM:
		return VPMEMDevice{Slot: g.Slot}.Addr()
	case MappedDirectory:
		return Plan9Share{Name: g.Share}.Addr()
	case NetworkInterface:
		return NIC{Slot: g.Slot}.Addr()
	case MappedVirtioFS:
		return VirtioFSShare{Slot: g.Slot}.Addr()
	}
	return ""
}

func (g MappedDisk) String() string {
	what := SCSIAddr(g.Controller, g.LUN)
	if g.Partition != 0 {
		what += fmt.Sprintf(" partition %d", g.Partition)
	}
	if g.MountPath == "" {
		return "guest " + what
	}
	return "mount " + what + " at " + g.MountPath
}

func (g MappedPMEM) String() string {
	return fmt.Sprintf("mount vpmem %d at %s", g.Slot, g.MountPath)
}
func (g MappedDirectory) String() string {
	return fmt.Sprintf("mount share %s at %s", g.Share, g.MountPath)
}
func (g MappedVirtioFS) String() string {
	return fmt.Sprintf("mount virtiofs %d at %s", g.Slot, g.MountPath)
}
func (g CombinedLayers) String() string {
	return fmt.Sprintf("combine %d layers at %s", len(g.Layers), g.RootPath)
}
func (g BlockCIMs) String() string {
	return fmt.Sprintf("mount %d block CIMs as volume %s", len(g.CIMs), g.VolumeGUID)
}
func (g CIMVolume) String() string {
	return fmt.Sprintf("mount %d CIMs as volume %s", len(g.Images), g.VolumeGUID)
}
