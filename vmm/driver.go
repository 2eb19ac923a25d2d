package vmm

import (
	"context"
	"log/slog"
	"time"
)

// Driver starts and finds the machines of one VMM. Package strata has the table of drivers and records the
// name of a machine's driver in its state directory. docs/drivers.md is a walk through writing one.
//
// A machine is known by its state directory, an absolute path. A driver keeps there what a later process needs
// to find the machine again, in files of its own names; other files are other packages'. All methods may be
// called concurrently, also by several processes: the caller of Start and Open holds a lock of the directory,
// the caller of the other methods does not.
type Driver interface {
	// Name is the word that state directories record. It never changes.
	Name() string
	// Traits says what the driver needs of its caller.
	Traits() Traits
	// Start starts a machine and returns when its guest answers, or with an error and nothing left behind. The
	// directory exists. The machine outlives this process. An error matches ErrRunning when a machine runs there,
	// and errors.ErrUnsupported when the driver cannot start such machines on this host.
	Start(ctx context.Context, o StartOptions) (Machine, error)
	// Open takes control of a machine that was started before, by whichever process. An error matches
	// ErrNoVM when there never was one of this driver in the directory, and ErrGone when it has ended.
	Open(ctx context.Context, dir string, o OpenOptions) (Machine, error)
	// OpenExec connects to a machine that another process may control at the same time. Errors are those of Open.
	OpenExec(ctx context.Context, dir string, o OpenOptions) (Runner, error)
	// Inspect reports what is known of the machine without its cooperation, and changes nothing. An error
	// matches ErrNoVM when the directory holds no machine of this driver; one that has ended is there and not
	// running. Directories made before names were recorded are recognised by it.
	Inspect(ctx context.Context, dir string) (Info, error)
	// Kill ends the machine at once, whoever controls it and whatever it does. It succeeds when it has ended
	// already.
	Kill(ctx context.Context, dir string) error
	// Limits are those of a machine that Inspect described; of the zero Info with an OS, those of one started
	// with default options. They serve dry runs.
	Limits(i Info) (Limits, error)
}

// TemplateMaker is what drivers may implement that know StartOptions.Template.
type TemplateMaker interface {
	// MakeTemplate saves a machine of the kind that the options say, which is started for that alone and ends with it.
	// Where there is one already it does nothing. Dir, Name and Namespace do not matter.
	MakeTemplate(ctx context.Context, o StartOptions) (made bool, err error)
}

// Traits says what a driver needs of its caller.
type Traits struct {
	// BootImage: Linux guests boot StartOptions.Image, which the caller has built.
	BootImage bool
	// HostSystem: the machine is the system that this program runs on. It is opened by strata.OpenHost, which
	// starts it where there is none.
	HostSystem bool
}

// StartOptions says what machine a driver starts. A driver ignores the fields that it has no use for.
type StartOptions struct {
	Dir       string // the state directory, absolute
	Name      string // shows in process lists and logs; empty: the last part of Dir
	OS        OS     // the system inside; empty: Linux
	MemoryMiB int    // of the guest; 0: the driver's default
	CPUs      int    // of the guest; 0: as many as the host has, at most 2
	Accel     string // "auto" (or empty), "kvm" or "tcg"
	// NoShares: no folders of the host will be shared with the machine while it runs. Where sharing them needs memory
	// of another kind, the machine starts faster without.
	NoShares  bool
	Transport string // "auto" (or empty), "vsock" or "serial"
	// Namespace is the file of the network namespace of the host that the process of the VMM is in, or NewNamespace;
	// empty: the caller's.
	Namespace string
	// Template has the machine loaded from a saved one of its kind, which the first start of a kind makes. A driver that
	// cannot do so, or not now, boots it.
	Template bool
	// TemplateMissing, where it is set, is called when there is no such machine of its kind. The machine then just
	// boots, and it is for the caller to have one made, see TemplateMaker.
	TemplateMissing func()

	Image     BootImage // what a Linux guest boots, see Traits.BootImage
	BootFiles string    // folder with kernel and initrd.img of a Linux guest of Windows hosts
	UVMLayers []string  // layer folders of the image that a Windows guest boots, top-most first

	// CacheDir is where a driver may keep what it found out about this host. Empty: nowhere.
	CacheDir string
	Logger   *slog.Logger // never nil
}

// NewNamespace, where a path of a namespace may be, is one that is made, and goes with its last process.
const NewNamespace = "new"

// OpenOptions are those of opening a machine.
type OpenOptions struct {
	Logger *slog.Logger // never nil
}

// BootImage is what a VMM needs to boot a Linux guest.
type BootImage struct {
	Kernel        string   // an uncompressed ELF with a PVH entry where that can be had
	Initrd        string   // uncompressed cpio
	Cmdline       []string // words for the kernel command line, without the console
	KernelRelease string
	ID            string // names the content of Kernel and Initrd; empty: not known
}

// Info is what is known of a machine without its cooperation.
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
	// NoShares: see StartOptions.
	NoShares bool      `json:"noShares,omitempty"`
	Started  time.Time `json:"started,omitzero"`
	// Transport is how the guest of a QEMU VM is reached: "vsock" or "serial".
	Transport string `json:"transport,omitempty"`
	// Template names the template that the machine was loaded from; empty: it booted.
	Template string `json:"template,omitempty"`
	// Paused says why the guest stands still, such as a full disk of the host; empty: it runs.
	Paused string `json:"paused,omitempty"`
	// Idle: nothing is in the machine, and its state may be removed although it runs. Only the system itself is
	// ever idle.
	Idle bool `json:"-"`
}

// Runner runs programs in a machine.
type Runner interface {
	// Exec starts a process in the guest.
	Exec(ctx context.Context, spec ProcessSpec) (Process, error)
	// FindProcess is that of Machine.
	FindProcess(ctx context.Context, containerID string, pid uint32) (Process, error)
	// Close ends the connection.
	Close() error
}

// ShareServer is what machines and their runners implement where VirtioFSShares are served by processes that can die.
type ShareServer interface {
	// CheckShare returns an error when the share in a slot is not served any more.
	CheckShare(ctx context.Context, slot uint32) error
	// WatchShares waits until one of these shares is not served any more, and returns an error that names it; or until
	// ctx ends, and returns its cause.
	WatchShares(ctx context.Context, slots ...uint32) error
}

// VolumePather is what machines with Limits.WritableLayers implement.
type VolumePather interface {
	// VolumePath returns the path of the volume of a WritableLayer that is attached: the root of the container
	// whose scratch it is.
	VolumePath(ctx context.Context, folder string) (string, error)
}

// HostPather is what machines implement whose files are the host's too.
type HostPather interface {
	// HostPath returns where a guest path is on the host.
	HostPath(guest string) string
}
