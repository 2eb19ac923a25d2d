package hcs

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"runtime"

	"github.com/stratavm/strata/vmm"
)

// Builds of Windows with relevant differences.
const (
	buildRS5          = 17763 // the first with schema 2.1
	buildKernelDirect = 18286 // the first that boots a Linux kernel without firmware
	// In this range of builds, directly mapped shares of file systems without file identities fail.
	buildFileIDFirst = 18362
	buildFileIDLast  = 19042
)

// ErrOptions is matched by errors about options that cannot be used.
var ErrOptions = errors.New("utility VM options")

// Options are the options of both kinds of VMs, with hcsshim's names. They are plain data and may be stored to open the
// VM again.
type Options struct {
	ID    string // of the compute system, unique on the host
	Owner string // shown by tools that list compute systems

	// AdditionHCSDocumentJSON is merged into the create document: objects member by member, other values are replaced.
	AdditionHCSDocumentJSON string `json:",omitempty"`

	MemorySizeInMB       uint64 // rounded up to an even number
	LowMMIOGapInMB       uint64 `json:",omitempty"`
	HighMMIOBaseInMB     uint64 `json:",omitempty"`
	HighMMIOGapInMB      uint64 `json:",omitempty"`
	AllowOvercommit      bool   // backed by the host's virtual memory
	EnableDeferredCommit bool   `json:",omitempty"` // needs AllowOvercommit
	// FullyPhysicallyBacked also excludes devices that share the host's memory: VPMEM layers and direct-mapped shares.
	FullyPhysicallyBacked bool `json:",omitempty"`

	ProcessorCount  int32  // limited to the host's logical processors
	ProcessorLimit  int32  `json:",omitempty"` // 1/1000 percent
	ProcessorWeight int32  `json:",omitempty"`
	CPUGroupID      string `json:",omitempty"`

	StorageQoSIopsMaximum      int32 `json:",omitempty"`
	StorageQoSBandwidthMaximum int32 `json:",omitempty"` // bytes per second

	// ExternalGuestConnection: we own the connection to the guest agent, not the service.
	ExternalGuestConnection bool `json:",omitempty"`
	// DisableCompartmentNamespace omits the registry value EnableCompartmentNamespace of Windows guests.
	DisableCompartmentNamespace bool `json:",omitempty"`

	// SCSIControllerGUIDs names controllers by GUID. Linux guests since 2022 require it to distinguish several
	// controllers.
	SCSIControllerGUIDs bool `json:",omitempty"`

	// Persistent keeps the VM running when the process that created it exits; [OpenLCOW] and [OpenWCOW] open it again.
	// hcsshim has no such option: its VMs end with their process.
	Persistent bool `json:",omitempty"`
}

// RootFS is the kind of root file system of a Linux VM.
type RootFS int

// The kinds of root file systems.
const (
	RootFSInitRd RootFS = iota // an initial RAM disk
	RootFSVHD                  // a disk image on the first VPMEM device
)

// GuestGeneration is the generation of a Linux guest agent, on which the documents for it depend.
type GuestGeneration int

// The generations.
const (
	// GuestProbe: send the newer documents, and detect whether the guest supports SCSIDevice requests.
	GuestProbe GuestGeneration = iota
	// Guest2021: unmounting a disk also unplugs it. Relevant options that this guest would silently ignore are an
	// error.
	Guest2021
	// GuestCurrent: a disk is unplugged by a separate request.
	GuestCurrent
	// GuestUnplugs is a possible result of GuestProbe: the same, but unmounting a disk also unplugs it.
	GuestUnplugs
)

// OptionsLCOW are the options of a VM for Linux containers. See [DefaultLCOW].
type OptionsLCOW struct {
	Options

	BootFilesPath       string // the folder of the boot files
	KernelFile          string
	KernelDirect        bool // boot the kernel without firmware; needs build 18286
	RootFSFile          string
	PreferredRootFSType RootFS `json:",omitempty"`
	KernelBootOptions   string `json:",omitempty"` // appended to the kernel command line

	EnableGraphicsConsole bool   `json:",omitempty"`
	ConsolePipe           string `json:",omitempty"` // \\.\pipe\name: a serial console
	VPCIEnabled           bool   `json:",omitempty"`
	EnableColdDiscardHint bool   `json:",omitempty"`

	UseGuestConnection bool
	ExecCommandLine    string // what init runs: the guest agent
	ForwardStdout      bool   `json:",omitempty"` // of the agent, to our log
	ForwardStderr      bool   `json:",omitempty"`

	SCSIControllerCount uint32 // 0 or 1; up to 4 with SCSIControllerGUIDs
	VPMemDeviceCount    uint32
	VPMemSizeBytes      uint64

	GuestGeneration GuestGeneration `json:",omitempty"`
}

// OptionsWCOW are the options of a VM for Windows containers. See [DefaultWCOW].
type OptionsWCOW struct {
	Options

	// LayerFolders are the layer folders of the image, top-most first, followed by the folder of the VM's own scratch.
	// The first layer with a UtilityVM folder provides the VM's operating system.
	LayerFolders []string
	// KeepDirectMappedShares keeps direct-mapped shares in the VM until it exits: the guest has mapped files of theirs,
	// which a removal would invalidate. hcsshim of 2021 removed them.
	KeepDirectMappedShares bool `json:",omitempty"`
	// NoInheritHostTimezone sets the guest to UTC instead of the host's time zone. With an internal guest connection
	// neither is set.
	NoInheritHostTimezone bool `json:",omitempty"`
}

const (
	maxVPMem       = 128
	defaultVPMem   = 64
	defaultVPMSize = 4 << 30
	vpmemPage      = 4096
	scsiLUNs       = 64
	// maxMemoryMB prevents an overflow by rounding up; no host has as much.
	maxMemoryMB = math.MaxInt32
)

func defaults(id, owner string) Options {
	return Options{ID: id, Owner: owner, MemorySizeInMB: 1024, AllowOvercommit: true,
		ProcessorCount: int32(min(2, runtime.NumCPU()))}
}

// DefaultLCOW returns the default options of a VM for Linux containers on a host with a Windows build, with boot files
// in folder boot: an initial RAM disk, one SCSI controller, 64 VPMEM devices of 4 GiB, and an external guest
// connection.
func DefaultLCOW(id, owner, boot string, build uint32) OptionsLCOW {
	o := OptionsLCOW{
		Options:       defaults(id, owner),
		BootFilesPath: boot, KernelFile: "kernel", KernelDirect: build >= buildKernelDirect,
		RootFSFile: "initrd.img", UseGuestConnection: true,
		ExecCommandLine: "/bin/gcs -v4 -log-format json -loglevel info", ForwardStderr: true,
		SCSIControllerCount: 1, VPMemDeviceCount: defaultVPMem, VPMemSizeBytes: defaultVPMSize,
	}
	o.ExternalGuestConnection = true
	return o
}

// DefaultWCOW returns the default options of a VM for Windows containers.
func DefaultWCOW(id, owner string, layerFolders []string) OptionsWCOW {
	return OptionsWCOW{Options: defaults(id, owner), LayerFolders: layerFolders, KeepDirectMappedShares: true}
}

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrOptions, fmt.Errorf(format, args...))
}

// idPattern restricts identifiers, which appear in paths, pipe names and security descriptors.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.@-]{0,127}$`)

func (o *Options) check(build uint32) error {
	switch {
	case !idPattern.MatchString(o.ID):
		return bad("ID %q: use 1 to 128 letters, digits, '_', '.', '@' or '-', a letter or digit first", o.ID)
	case build < buildRS5:
		return bad("Windows build %d is too old: %d is the first that knows utility VMs of schema 2.1", build, buildRS5)
	case o.MemorySizeInMB == 0 || o.MemorySizeInMB > maxMemoryMB:
		return bad("MemorySizeInMB %d: give 1 to %d", o.MemorySizeInMB, maxMemoryMB)
	case o.ProcessorCount <= 0:
		return bad("ProcessorCount %d: give at least 1", o.ProcessorCount)
	case o.EnableDeferredCommit && (!o.AllowOvercommit || o.FullyPhysicallyBacked):
		return bad("EnableDeferredCommit is not supported on physically backed VMs: set AllowOvercommit")
	case o.Persistent && o.ExternalGuestConnection:
		return bad("a persistent VM needs a guest connection that the service owns: clear ExternalGuestConnection")
	}
	return nil
}

func (o *OptionsLCOW) check(build uint32) error {
	if err := o.Options.check(build); err != nil {
		return err
	}
	maxControllers := uint32(1)
	if o.SCSIControllerGUIDs {
		maxControllers = 4
	}
	switch {
	case o.SCSIControllerCount > maxControllers && maxControllers == 1:
		return bad("SCSI controller count must be 0 or 1, not %d (up to 4 with SCSIControllerGUIDs)",
			o.SCSIControllerCount)
	case o.SCSIControllerCount > maxControllers:
		return bad("SCSI controller count cannot be greater than %d, not %d", maxControllers, o.SCSIControllerCount)
	case o.VPMemDeviceCount > maxVPMem:
		return bad("VPMem device count cannot be greater than %d, not %d", maxVPMem, o.VPMemDeviceCount)
	case o.VPMemDeviceCount > 0 && (o.VPMemSizeBytes == 0 || o.VPMemSizeBytes%vpmemPage != 0):
		return bad("VPMemSizeBytes must be a multiple of %d, not %d", vpmemPage, o.VPMemSizeBytes)
	case o.PreferredRootFSType == RootFSVHD && o.VPMemDeviceCount == 0:
		return bad("PreferredRootFSType VHD requires at least one VPMem device")
	case o.PreferredRootFSType != RootFSVHD && o.PreferredRootFSType != RootFSInitRd:
		return bad("PreferredRootFSType %d is not known", o.PreferredRootFSType)
	case o.KernelDirect && build < buildKernelDirect:
		return bad("KernelDirect is not supported on Windows build %d: %d is the first", build, buildKernelDirect)
	case o.BootFilesPath == "" || o.KernelFile == "" || o.RootFSFile == "":
		return bad("BootFilesPath, KernelFile and RootFSFile must be given")
	case o.ExternalGuestConnection && !o.UseGuestConnection:
		return bad("ExternalGuestConnection without UseGuestConnection")
	}
	return nil
}

func (o *OptionsWCOW) check(build uint32) error {
	if err := o.Options.check(build); err != nil {
		return err
	}
	if len(o.LayerFolders) < 2 {
		return bad("at least 2 LayerFolders must be supplied (layers, then the VM's scratch), not %d",
			len(o.LayerFolders))
	}
	return nil
}

// limits returns the limits of a VM with these options. They do not include verity, although a request can have a root
// digest: Microsoft's current guest reads the super block on the disk instead, and only if it was started with a
// security policy. Otherwise it mounts the disk unchecked, without an error.
func (o *OptionsLCOW) limits() vmm.Limits {
	l := vmm.Limits{
		SCSIControllers: uint8(o.SCSIControllerCount), VPMEMDevices: o.VPMemDeviceCount,
		VPMEMMaxBytes: o.VPMemSizeBytes, Plan9: true, PhysicallyBacked: o.FullyPhysicallyBacked,
	}
	if o.SCSIControllerCount > 0 {
		l.SCSILUNs = scsiLUNs
	}
	if o.PreferredRootFSType == RootFSVHD {
		l.VPMEMReserved = 1
	}
	return l
}

func (o *OptionsWCOW) limits() vmm.Limits {
	return vmm.Limits{SCSIControllers: 1, SCSILUNs: scsiLUNs, VSMB: true,
		VSMBRetained: o.KeepDirectMappedShares, PhysicallyBacked: o.FullyPhysicallyBacked,
		ReservedSCSI: []vmm.SCSISlot{{Controller: 0, LUN: 0}}}
}
