package vmm

import (
	"context"
	"log/slog"
	"time"
)

// Driver starts and finds the machines of one VMM. Package strata has the table of drivers and records the name of a
// machine's driver in its state directory. docs/drivers.md describes how to write one.
//
// A machine is identified by its state directory, an absolute path. A driver stores there what a later process needs to
// find the machine again, in files of its own; other files belong to other packages. All methods may be called
// concurrently, also by several processes: the caller of Start and Open holds a lock on the directory, the caller of
// the other methods does not.
type Driver interface {
	// Name is the driver's name in state directories. It never changes.
	Name() string
	// Traits returns what the driver requires of its caller.
	Traits() Traits
	// Start starts a machine and returns when its guest answers, or with an error and nothing left behind. The
	// directory exists. The machine outlives this process. If a machine is running there already, the error matches
	// ErrRunning; if the driver cannot start such a machine on this host, errors.ErrUnsupported.
	Start(ctx context.Context, o StartOptions) (Machine, error)
	// Open takes control of a machine that any process has started. If there never was one of this driver in the
	// directory, the error matches ErrNoVM; if it has ended, ErrGone.
	Open(ctx context.Context, dir string, o OpenOptions) (Machine, error)
	// OpenExec connects to a machine that another process may control at the same time. Errors are those of Open, and
	// ErrHostFull where the machine waits for room on the host.
	OpenExec(ctx context.Context, dir string, o OpenOptions) (Runner, error)
	// Inspect describes the machine without its cooperation, and changes nothing. If the directory has no machine of
	// this driver, the error matches ErrNoVM. A machine that has ended is reported as not running. It serves to
	// recognise directories that were created before names were recorded.
	Inspect(ctx context.Context, dir string) (Info, error)
	// Kill ends the machine at once, whichever process controls it. If it has ended already, Kill succeeds.
	Kill(ctx context.Context, dir string) error
	// Limits returns the limits of a machine that Inspect described, or, for an Info with only an OS, of one started
	// with default options. It serves dry runs.
	Limits(i Info) (Limits, error)
}

// TemplateMaker is optionally implemented by drivers that support StartOptions.Template.
type TemplateMaker interface {
	// MakeTemplate boots a machine of the kind that the options describe, saves it as the template of that kind and
	// ends it. If there is a template already, it does nothing. It ignores Dir, Name and Namespace.
	MakeTemplate(ctx context.Context, o StartOptions) (made bool, err error)
}

// Traits are what a driver requires of its caller.
type Traits struct {
	// BootImage: Linux guests boot StartOptions.Image, which the caller has built.
	BootImage bool
	// HostSystem: the machine is the system that this program runs on. strata.OpenHost opens it, and starts it if there
	// is none.
	HostSystem bool
}

// StartOptions configure a machine. A driver ignores the fields that do not apply to it.
type StartOptions struct {
	Dir       string // the state directory, absolute
	Name      string // shows in process lists and logs; empty: the last part of Dir
	OS        OS     // of the guest; empty: Linux
	MemoryMiB int    // of the guest; 0: the driver's default
	CPUs      int    // of the guest; 0: as many as the host has, at most 2
	Accel     string // "auto" (or empty), "kvm" or "tcg"
	// NoShares: no folders of the host will be shared with the machine while it runs. With some drivers it then starts
	// faster, as its memory need not be shared.
	NoShares  bool
	Transport string // "auto" (or empty), "vsock" or "serial"
	// Namespace is the path of the host's network namespace in which the VMM process runs, or NewNamespace; empty: the
	// caller's.
	Namespace string
	// Template loads the machine from a template, which is a saved machine of the same kind. If there is none, the
	// driver boots the machine and saves it as the template. A driver that does not support that, or fails at it, just
	// boots.
	Template bool
	// TemplateMissing, if set, is called when there is no template of the machine's kind. The machine then boots and is
	// not saved; the caller may make a template with TemplateMaker. It may be called more than
	// once.
	TemplateMissing func()

	Image     BootImage // what a Linux guest boots, see Traits.BootImage
	BootFiles string    // folder with kernel and initrd.img of a Linux guest of Windows hosts
	UVMLayers []string  // layer folders of the image that a Windows guest boots, top-most first

	// CacheDir is the directory where a driver may cache what it found out about this host, and templates. Empty: none.
	CacheDir string
	Logger   *slog.Logger // never nil
}

// NewNamespace in place of a namespace's path means a new namespace, which ends with its last process.
const NewNamespace = "new"

// OpenOptions are the options for opening a machine.
type OpenOptions struct {
	Logger *slog.Logger // never nil
}

// BootImage is what a VMM needs to boot a Linux guest.
type BootImage struct {
	Kernel        string   // an uncompressed ELF with a PVH entry if available
	Initrd        string   // uncompressed cpio
	Cmdline       []string // kernel command line, without the console
	KernelRelease string
	ID            string // identifies the content of Kernel and Initrd; empty: unknown
}

// Info describes a machine as far as that is known without its cooperation.
type Info struct {
	Dir     string `json:"dir"`
	Driver  string `json:"driver"` // its name
	Running bool   `json:"running"`
	PID     int    `json:"pid,omitempty"` // of the VMM
	OS      OS     `json:"os"`            // of the guest
	Accel   string `json:"accel,omitempty"`
	Memory  int    `json:"memoryMiB,omitempty"`
	CPUs    int    `json:"cpus,omitempty"`
	Kernel  string `json:"kernel,omitempty"`
	// NoShares is that of StartOptions.
	NoShares bool      `json:"noShares,omitempty"`
	Started  time.Time `json:"started,omitzero"`
	// Transport is the channel to the guest of a QEMU VM: "vsock" or "serial".
	Transport string `json:"transport,omitempty"`
	// Template names the template that the machine was loaded from; empty: it booted.
	Template string `json:"template,omitempty"`
	// Paused says why the guest is paused, such as a full disk of the host; empty: it is not.
	Paused string `json:"paused,omitempty"`
	// Idle: the machine has no devices or mounts, and its state may be removed although it runs. Only machines that are
	// the host itself are ever idle.
	Idle bool `json:"-"`
}

// Runner runs programs in a machine.
type Runner interface {
	// Exec starts a process in the guest.
	Exec(ctx context.Context, spec ProcessSpec) (Process, error)
	// FindProcess is Machine.FindProcess.
	FindProcess(ctx context.Context, containerID string, pid uint32) (Process, error)
	// Close ends the connection.
	Close() error
}

// ShareServer is implemented by machines and runners whose VirtioFSShares are served by processes that can die.
type ShareServer interface {
	// CheckShare returns an error if the share in a slot is no longer served.
	CheckShare(ctx context.Context, slot uint32) error
	// WatchShares waits until one of the shares in these slots is no longer served, and returns an error that names it.
	// If ctx ends first, it returns the cause.
	WatchShares(ctx context.Context, slots ...uint32) error
}

// VolumePather is implemented by machines with Limits.WritableLayers.
type VolumePather interface {
	// VolumePath returns the path of the volume of a WritableLayer that is attached: the root of the container
	// whose scratch it is.
	VolumePath(ctx context.Context, folder string) (string, error)
}

// HostPather is implemented by machines whose files are also on the host.
type HostPather interface {
	// HostPath returns the host path of a guest path.
	HostPath(guest string) string
}
