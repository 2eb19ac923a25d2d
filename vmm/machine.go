package vmm

import (
	"context"
	"io"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// OS is the operating system inside a machine.
type OS string

// The guests there are.
const (
	Linux   OS = "linux"
	Windows OS = "windows"
)

// Machine is a running virtual machine. All methods may be called concurrently.
type Machine interface {
	// ID is the machine's name, unique on this host.
	ID() string
	// OS is what runs inside.
	OS() OS
	// Limits says what the machine can hold. It does not change while the machine runs.
	Limits() Limits
	// Apply creates one Change. See the package comment for the contract; a failure is an *ApplyError.
	Apply(ctx context.Context, c Change) error
	// Observe reports which devices and guest mounts exist really, whoever made them.
	Observe(ctx context.Context) (Observation, error)
	// Exec starts a process in the guest.
	Exec(ctx context.Context, spec ProcessSpec) (Process, error)
	// FindProcess returns a process that Exec started, also in another program of this host that has ended since,
	// by its Pid and the container it is in (empty: the machine itself). It can be waited for and signalled; its
	// streams are not connected. The error matches ErrNoProcess when the guest does not know it, and
	// errors.ErrUnsupported where processes end with the program that started them or cannot be found.
	FindProcess(ctx context.Context, containerID string, pid uint32) (Process, error)
	// DeleteContainerState tells the guest to forget a container: processes that are still in it are
	// killed and its directory is removed. It succeeds when the guest does not know the container.
	DeleteContainerState(ctx context.Context, containerID string) error
	// Stacks returns the stacks of the guest agent, for diagnosis.
	Stacks(ctx context.Context) (string, error)
	// Done is closed as soon as the machine is gone, or its VMM cannot be reached any more.
	Done() <-chan struct{}
	// Err is nil while the machine runs; after Done it tells the reason. It matches ErrGone when the
	// machine is gone; else it may run on, and can be terminated or opened again.
	Err() error
	// Shutdown asks the guest to power off and waits; when ctx ends first it terminates the machine.
	Shutdown(ctx context.Context) error
	// Terminate ends the machine at once.
	Terminate(ctx context.Context) error
	// Close releases the machine and waits for what it began here. The machine runs on where its VMM can
	// (QEMU); it may be opened again later, by another process too.
	Close() error
}

// Limits says what a machine can hold and which ways of doing things it knows.
type Limits struct {
	SCSIControllers uint8 // number of controllers; 0: no SCSI
	SCSILUNs        uint8 // LUNs per controller
	// ReservedSCSI are slots that the machine itself uses (boot disk, its scratch).
	ReservedSCSI []SCSISlot

	VPMEMDevices  uint32 // number of slots; 0: no VPMEM
	VPMEMReserved uint32 // slots from 0 that the machine itself uses
	VPMEMMaxBytes uint64 // largest file, footer included
	// VPMEMAlign: the size of what a device holds (a VHD's footer is not part of it) has to be a
	// multiple of this many bytes; 0: any size will do.
	VPMEMAlign uint64
	// VPMEMRetained: devices can be added but not removed while the machine runs. After the guest has
	// released one it stays in its slot (is retained) and serves the same file again.
	VPMEMRetained bool

	VSMB bool // folders can be shared with a Windows guest
	// VSMBRetained: direct-mapped shares are not removed before the machine exits.
	VSMBRetained bool
	Plan9        bool // folders can be shared with a Linux guest

	NICs uint32 // number of slots for network interfaces; 0: none
	// VirtioFSShares is how many folders and files of the host can be in the machine as VirtioFSShare; 0: none.
	VirtioFSShares uint32
	// HostFiles: a container in the machine can bind the host's own files and folders.
	HostFiles bool
	// HostNetworks: a container in the machine can be in a network namespace of the host.
	HostNetworks bool

	// WritableLayers: the machine is a Windows host itself. A scratch is a WritableLayer, layers are folders of
	// the host or a CIMVolume, and CombinedLayers has the scratch folder for its root.
	WritableLayers bool

	// ScratchFolders: a folder shared over Plan9 can be the writable part of an overlay.
	ScratchFolders bool
	// LayerFolders: layers are directory trees that are shared over Plan9, and nothing else.
	LayerFolders bool

	PhysicallyBacked bool // the machine's devices must be: no VPMEM, no direct map
	CompositeDisks   bool // SCSIDisk.Extents is understood
	EROFS            bool // the guest mounts EROFS
	Verity           bool // the guest checks dm-verity
	// Observes: Observe tells the truth. Where it is false Observe returns what this process applied.
	Observes bool
}

// SCSISlot is a place for a disk.
type SCSISlot struct {
	Controller uint8 `json:"controller"`
	LUN        uint8 `json:"lun"`
}

// Observation is what is really in a machine. For devices at least the fields that make up the
// address and the path are set; for guest actions at least those that make up the target.
type Observation struct {
	Devices []Device
	Mounts  []Mount
}

// Device finds a device by address, or nil.
func (o Observation) Device(addr string) Device {
	for _, d := range o.Devices {
		if d.Addr() == addr {
			return d
		}
	}
	return nil
}

// Mount finds the guest action of the same kind and target, or nil.
func (o Observation) Mount(like Mount) Mount {
	for _, g := range o.Mounts {
		if SameTarget(g, like) {
			return g
		}
	}
	return nil
}

// SameTarget reports whether two guest actions are of one kind and have one target. The kind counts
// because the root of a Windows container is the very folder that its scratch is mounted at.
func SameTarget(a, b Mount) bool {
	return mountKind(a) == mountKind(b) && a.Target() == b.Target()
}

// ProcessSpec describes a process in the guest.
type ProcessSpec struct {
	// ContainerID and Root put the process inside a root made by CombinedLayers, in namespaces that
	// all processes of that container share. Both empty: the process runs in the machine itself.
	ContainerID string
	Root        string

	// First: the process begins the container, and its end ends the container with all else that runs in it. Where
	// something runs in it already the error matches ErrOccupied. Other processes join what runs in the container; where
	// nothing does, they begin it, and what they leave in the background of a VM runs on until the container is
	// unmounted or deleted.
	First bool

	Args []string // Args[0] is looked up in Env's PATH
	Env  []string // "KEY=value"
	Dir  string   // working directory; empty: "/"
	// MakeDir creates a working directory that is missing; otherwise that is an error. Guests that are not
	// ours do as they do.
	MakeDir bool
	// User is "", "name", "uid", "uid:gid" or "name:group", resolved with the files in the root.
	User     string
	Hostname string // of the container; empty: its id
	// Spec is the container's whole OCI document, used by the process that begins the container; Root.Path is
	// replaced by Root, and what describes the process by the fields here. Nil: the defaults.
	Spec *specs.Spec

	Terminal      bool
	Width, Height uint16 // of the terminal
	// A nil reader or writer means that the stream is not connected.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// OutOfMemory is what processes may implement of which it is known why they were killed.
type OutOfMemory interface {
	// OutOfMemory reports, after Wait, whether the process was killed and a memory limit of its container was reached.
	OutOfMemory() bool
}

// Process is a process in the guest.
type Process interface {
	Pid() uint32
	// Wait waits for the exit and for the last byte of output. It may be called by several goroutines.
	Wait(ctx context.Context) (exitCode int, err error)
	// Signal sends a signal by its Linux number. A process that has exited is no error.
	Signal(ctx context.Context, sig int) error
	// Resize tells the terminal its size.
	Resize(ctx context.Context, width, height uint16) error
	// Close releases the process without ending it. When it returns nothing is written to Stdout and Stderr
	// any more; where one of them blocks for too long it is an error.
	Close() error
}
