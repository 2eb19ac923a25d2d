package vmm

import (
	"context"
	"io"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// OS is the operating system inside a machine.
type OS string

// The guest systems.
const (
	Linux   OS = "linux"
	Windows OS = "windows"
)

// Machine is a running virtual machine. All methods may be called concurrently.
type Machine interface {
	// ID returns the machine's name, unique on this host.
	ID() string
	// OS returns the guest system.
	OS() OS
	// Limits returns what the machine can hold. It does not change while the machine is running.
	Limits() Limits
	// Apply applies one Change. See the package comment for the contract; errors are of type *ApplyError.
	Apply(ctx context.Context, c Change) error
	// Observe reports which devices and guest mounts really exist, including those of other processes.
	Observe(ctx context.Context) (Observation, error)
	// Exec starts a process in the guest.
	Exec(ctx context.Context, spec ProcessSpec) (Process, error)
	// FindProcess returns a process by its Pid and container (empty: none). It may have been started by another
	// process of this host that has ended. The result can be waited for and signalled; its streams are not connected.
	// The error matches ErrNoProcess if the guest does not know the process, and errors.ErrUnsupported if processes
	// end with the program that started them or cannot be found.
	FindProcess(ctx context.Context, containerID string, pid uint32) (Process, error)
	// DeleteContainerState makes the guest forget a container: its processes are killed and its directory is removed.
	// It succeeds if the guest does not know the container.
	DeleteContainerState(ctx context.Context, containerID string) error
	// Stacks returns the stacks of the guest agent, for diagnosis.
	Stacks(ctx context.Context) (string, error)
	// Done is closed once the machine is gone, or its VMM cannot be reached any more.
	Done() <-chan struct{}
	// Err returns nil while the machine is running, and after Done the reason. If it does not match ErrGone, the
	// machine may still be running, and can be terminated or opened again.
	Err() error
	// Shutdown asks the guest to power off and waits; if ctx ends first, it terminates the machine.
	Shutdown(ctx context.Context) error
	// Terminate ends the machine at once, without asking the guest.
	Terminate(ctx context.Context) error
	// Close releases the machine and waits for calls in progress. The machine keeps running if its VMM can (QEMU) and
	// may be opened again, also by another process.
	Close() error
}

// Limits are the capacity and capabilities of a machine.
type Limits struct {
	SCSIControllers uint8 // number of controllers; 0: no SCSI
	SCSILUNs        uint8 // LUNs per controller
	// ReservedSCSI are slots that the machine itself uses (boot disk, its scratch).
	ReservedSCSI []SCSISlot

	VPMEMDevices  uint32 // number of slots; 0: no VPMEM
	VPMEMReserved uint32 // slots from 0 that the machine itself uses
	VPMEMMaxBytes uint64 // largest file, footer included
	// VPMEMAlign: the size of a device (without a VHD's footer) must be a multiple of this many bytes; 0: any size.
	VPMEMAlign uint64
	// VPMEMRetained: devices cannot be removed while the machine is running. Once the guest has released one, it stays
	// in its slot (is retained) and can be reused for the same file.
	VPMEMRetained bool

	VSMB bool // folders can be shared with a Windows guest
	// VSMBRetained: direct-mapped shares cannot be removed while the machine is running.
	VSMBRetained bool
	Plan9        bool // folders can be shared with a Linux guest

	NICs uint32 // number of slots for network interfaces; 0: none
	// VirtioFSShares is the number of slots for VirtioFSShares; 0: none.
	VirtioFSShares uint32
	// HostFiles: containers in the machine can bind-mount the host's files and folders.
	HostFiles bool
	// HostNetworks: containers in the machine can join network namespaces of the host.
	HostNetworks bool

	// WritableLayers: the machine is the Windows host itself. A scratch is a WritableLayer, layers are host folders or
	// a CIMVolume, and CombinedLayers.RootPath is the scratch folder.
	WritableLayers bool

	// ScratchFolders: a folder shared over Plan9 can be the writable part of an overlay.
	ScratchFolders bool
	// LayerFolders: layers must be directory trees, shared over Plan9.
	LayerFolders bool

	PhysicallyBacked bool // the machine's memory is physically backed: no VPMEM, no direct map
	CompositeDisks   bool // SCSIDisk.Extents is supported
	EROFS            bool // the guest mounts EROFS
	Verity           bool // the guest supports dm-verity
	// Observes: Observe returns what really exists. Otherwise it returns what this process applied.
	Observes bool
}

// SCSISlot is the address of a disk.
type SCSISlot struct {
	Controller uint8 `json:"controller"`
	LUN        uint8 `json:"lun"`
}

// Observation is what really exists in a machine. At least the fields of the address and the path of devices, and
// those of the target of mounts are set.
type Observation struct {
	Devices []Device
	Mounts  []Mount
}

// Device returns the device with the address, or nil.
func (o Observation) Device(addr string) Device {
	for _, d := range o.Devices {
		if d.Addr() == addr {
			return d
		}
	}
	return nil
}

// Mount returns the mount with the same kind and target, or nil.
func (o Observation) Mount(like Mount) Mount {
	for _, g := range o.Mounts {
		if SameTarget(g, like) {
			return g
		}
	}
	return nil
}

// SameTarget reports whether two mounts have the same kind and target. The kind matters because the root of a Windows
// container is the folder at which its scratch is mounted.
func SameTarget(a, b Mount) bool {
	return mountKind(a) == mountKind(b) && a.Target() == b.Target()
}

// ProcessSpec describes a process in the guest.
type ProcessSpec struct {
	// ContainerID and Root run the process inside a root created by CombinedLayers, in namespaces that all processes
	// of that container share. Both empty: it runs in the machine itself.
	ContainerID string
	Root        string

	// First: the process is the main process of the container, and the container ends with it. If processes are
	// already running in the container, the error matches ErrOccupied. Without First, the process joins the processes
	// of the container or, if there are none, starts it; what it leaves in the background of a VM keeps running until
	// the container is unmounted or deleted.
	First bool

	Args []string // Args[0] is looked up in Env's PATH
	Env  []string // "KEY=value"
	Dir  string   // working directory; empty: "/"
	// MakeDir creates a missing working directory, which is otherwise an error. Guests with another agent may ignore
	// it.
	MakeDir bool
	// User is "", "name", "uid", "uid:gid" or "name:group", looked up in the root.
	User     string
	Hostname string // of the container; empty: its id
	// Spec is the OCI spec of the container, used by the process that starts it; Root.Path is replaced by Root, and
	// the description of the process by the fields here. Nil: the defaults.
	Spec *specs.Spec

	Terminal      bool
	Width, Height uint16 // of the terminal
	// If a reader or writer is nil, the stream is not connected.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// OutOfMemory is implemented by processes that may know why they were killed.
type OutOfMemory interface {
	// OutOfMemory reports, after Wait, whether the process was killed and a memory limit of its container was hit.
	OutOfMemory() bool
}

// Process is a process in the guest.
type Process interface {
	Pid() uint32
	// Wait waits until the process has exited and all output is written. It may be called concurrently.
	Wait(ctx context.Context) (exitCode int, err error)
	// Signal sends a signal, by its Linux number. It is no error if the process has exited.
	Signal(ctx context.Context, sig int) error
	// Resize sets the size of the terminal.
	Resize(ctx context.Context, width, height uint16) error
	// Close releases the process without ending it. Afterwards nothing is written to Stdout and Stderr; if one of them
	// blocks for too long, Close fails.
	Close() error
}
