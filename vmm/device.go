package vmm

import (
	"fmt"
	"strings"
)

// DiskKind is how the host opens the source of a SCSI disk. The values are those of HCS.
type DiskKind string

// The kinds of SCSI attachments.
const (
	VirtualDisk           DiskKind = "VirtualDisk"           // a disk image file
	PassThru              DiskKind = "PassThru"              // a physical disk of the host
	ExtensibleVirtualDisk DiskKind = "ExtensibleVirtualDisk" // evd://<type>/<path>
)

// Access is the access right to a file that the machine needs before it can open it. It is used on Windows hosts only.
type Access uint8

// Ways to grant access.
const (
	AccessNone       Access = iota // the VM group can already read the file (read-only layers)
	AccessGroup                    // grant access to the VM group
	AccessIndividual               // grant access to this VM (scratch disks)
)

// DiskFormat is the format of the file behind a disk.
type DiskFormat string

// Disk formats. If empty, the extension of the path (.vhd, .vhdx) determines the format; any other is raw. The content
// is never probed.
const (
	FormatByName DiskFormat = ""
	FormatVHD    DiskFormat = "vhd" // fixed VHD: the content, followed by a 512-byte footer
	FormatVHDX   DiskFormat = "vhdx"
	FormatRaw    DiskFormat = "raw"
)

// Extent is a range of bytes of a composite disk. All lengths and offsets are multiples of 512.
type Extent struct {
	Path   string `json:"path,omitempty"`   // host file; empty: zeroes
	Offset int64  `json:"offset,omitempty"` // in the file
	Length int64  `json:"length"`
}

// SCSIDisk is a disk on a controller and LUN of the machine.
type SCSIDisk struct {
	Controller uint8      `json:"controller,omitempty"`
	LUN        uint8      `json:"lun,omitempty"`
	Path       string     `json:"path,omitempty"` // host path; for a composite disk a name for logs
	ReadOnly   bool       `json:"readOnly,omitempty"`
	Kind       DiskKind   `json:"kind,omitempty"` // empty means VirtualDisk
	Format     DiskFormat `json:"format,omitempty"`
	// ExtensibleType is the <type> of an evd:// source.
	ExtensibleType string `json:"extensibleType,omitempty"`
	Access         Access `json:"access,omitempty"`
	// Extents makes the disk a read-only concatenation of file ranges, if [Limits.CompositeDisks] is set. The driver
	// creates what its VMM needs for this and removes it on Remove.
	Extents []Extent `json:"extents,omitempty"`
}

// VPMEMDevice is a whole file as a persistent-memory device. It is always read-only in the guest.
type VPMEMDevice struct {
	Slot   uint32     `json:"slot,omitempty"`
	Path   string     `json:"path"`
	Format DiskFormat `json:"format,omitempty"`
}

// VSMBOptions are the options of a VSMB share, as HCS names them.
type VSMBOptions struct {
	ReadOnly            bool `json:",omitempty"`
	ShareRead           bool `json:",omitempty"`
	CacheIo             bool `json:",omitempty"`
	NoOplocks           bool `json:",omitempty"`
	TakeBackupPrivilege bool `json:",omitempty"`
	NoDirectmap         bool `json:",omitempty"`
	PseudoOplocks       bool `json:",omitempty"`
	RestrictFileAccess  bool `json:",omitempty"`
	SingleFileMapping   bool `json:",omitempty"`
}

// VSMBShare is a folder of a Windows host shared with a Windows guest.
type VSMBShare struct {
	Name         string      `json:"name"`
	Path         string      `json:"path,omitempty"`
	Options      VSMBOptions `json:"options"`
	AllowedFiles []string    `json:"allowedFiles,omitempty"` // full host paths; empty: the whole folder
}

// Plan9Share is a folder of the host shared with a Linux guest over 9P.
type Plan9Share struct {
	Name         string   `json:"name"`
	Path         string   `json:"path,omitempty"`
	ReadOnly     bool     `json:"readOnly,omitempty"`
	AllowedFiles []string `json:"allowedFiles,omitempty"` // names in Path; empty: the whole folder
}

// VirtioFSShare is a host folder or file shared with a Linux guest by a virtiofs device with a server process of its
// own. A file is shared as a folder with one file, named VirtioFSFile.
type VirtioFSShare struct {
	Slot     uint32 `json:"slot,omitempty"`
	Path     string `json:"path,omitempty"`
	File     bool   `json:"file,omitempty"`     // Path is a file
	ReadOnly bool   `json:"readOnly,omitempty"` // the server on the host refuses writes
}

// VirtioFSFile is the name of the only file in a VirtioFSShare of a file.
const VirtioFSFile = "file"

// Tag returns the virtiofs tag, by which the guest mounts the share.
func (d VirtioFSShare) Tag() string { return fmt.Sprintf("strata%d", d.Slot) }

// WritableLayer is a container's scratch folder on a machine that is the Windows host itself. While it is attached,
// its disk is a volume of the host.
type WritableLayer struct {
	Path string `json:"path"`
}

func (SCSIDisk) device()      {}
func (VPMEMDevice) device()   {}
func (VSMBShare) device()     {}
func (Plan9Share) device()    {}
func (VirtioFSShare) device() {}
func (WritableLayer) device() {}

// SCSIAddr returns the address of a SCSI slot, as Addr returns it.
func SCSIAddr(controller, lun uint8) string { return fmt.Sprintf("scsi %d:%d", controller, lun) }

// Addr implements Device.
func (d SCSIDisk) Addr() string { return SCSIAddr(d.Controller, d.LUN) }

// Addr implements Device.
func (d VPMEMDevice) Addr() string { return fmt.Sprintf("vpmem %d", d.Slot) }

// Addr implements Device.
func (d VSMBShare) Addr() string { return "vsmb " + d.Name }

// Addr implements Device.
func (d Plan9Share) Addr() string { return "plan9 " + d.Name }

// Addr implements Device.
func (d VirtioFSShare) Addr() string { return fmt.Sprintf("virtiofs %d", d.Slot) }

// Addr implements Device. A folder can be attached only once.
func (d WritableLayer) Addr() string { return "layer " + d.Path }

func describe(addr, path string, readOnly bool) string {
	mode := "rw"
	if readOnly {
		mode = "ro"
	}
	return strings.TrimSpace(fmt.Sprintf("%s %s", addr, path)) + " (" + mode + ")"
}

func (d SCSIDisk) String() string      { return describe(d.Addr(), d.Path, d.ReadOnly) }
func (d VPMEMDevice) String() string   { return describe(d.Addr(), d.Path, true) }
func (d VSMBShare) String() string     { return describe(d.Addr(), d.Path, d.Options.ReadOnly) }
func (d Plan9Share) String() string    { return describe(d.Addr(), d.Path, d.ReadOnly) }
func (d VirtioFSShare) String() string { return describe(d.Addr(), d.Path, d.ReadOnly) }
func (d WritableLayer) String() string {
	return describe("layer", d.Path, false)
}
