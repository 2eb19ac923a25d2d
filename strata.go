// Package strata starts and opens utility VMs with the driver of this host: QEMU on Linux, the Host
// Compute Service on Windows. What to do with a VM is in packages uvm (its devices and mounts) and
// layers (container roots).
//
//	vm, err := strata.StartVM(ctx, strata.VMOptions{Dir: "/var/lib/strata/vms/default"})
//	...
//	m, err := layers.Mount(ctx, layers.Request{VM: vm, ID: "web", Layers: ..., Scratch: "/scratch/web"})
//
// The state directory of a VM is all there is to it: a VM outlives the process that started it, and
// OpenVM takes it up again, by whichever process, mending what the last one left half done.
package strata

import (
	"cmp"
	"errors"
	"log/slog"
	"time"

	"github.com/stratavm/strata/internal/bootimage"
	"github.com/stratavm/strata/vmm"
)

// DefaultBootFiles is where those who ship kernel and initrd.img of Linux guests put them on Windows hosts.
const DefaultBootFiles = `C:\Program Files\Linux Containers`

// VMOptions says what VM to start.
type VMOptions struct {
	// Dir is the state directory. It is made, for the owner only, and must not hold a running VM.
	Dir string
	// Name shows in process lists and logs, and lists of compute systems. Empty: the last part of Dir.
	Name string
	// MemoryMiB is the guest's memory; 0: 256, on Windows hosts 1024.
	MemoryMiB int
	// CPUs of the guest; 0: as many as the host has, at most 2.
	CPUs int
	// Accel is "auto" (or empty), "kvm" or "tcg". auto takes KVM only where a VM truly runs with it.
	Accel string
	// Transport is how a Linux host reaches the guest: "auto" (or empty), "vsock" or "serial". auto takes
	// vsock where both have it.
	Transport string
	// Boot says what the VM boots; Image, when its Kernel is set, is taken instead of building one.
	Boot  bootimage.Options
	Image bootimage.Image
	// OS is the system inside; empty: Linux. The next three fields are for Windows hosts only.
	OS        vmm.OS
	BootFiles string   // folder with kernel and initrd.img of a Linux guest; empty: DefaultBootFiles
	UVMLayers []string // layer folders of the image that a Windows guest boots, top-most first
	// RollbackTimeout is the time that taking back a failed or cancelled call may take; 0: 30 s.
	RollbackTimeout time.Duration
	// Logger is nil for silence.
	Logger *slog.Logger
}

// OpenOptions are the optional parts of OpenVM.
type OpenOptions struct {
	RollbackTimeout time.Duration // as in VMOptions
	Logger          *slog.Logger  // nil: silent
	// ResponseTimeout is how long a VM that runs may say nothing (its process is stopped, say) before the error
	// matches uvm.ErrNoAnswer; 0: a minute. KillVM ends such a VM.
	ResponseTimeout time.Duration
	// Locked, where it is set, is called by OpenVM and OpenHost when no other process has the VM open any more, before the
	// VM is asked anything.
	Locked func()
	// InitPath is for this system itself (OpenHost): a program whose main calls guest.Stage of package
	// gcs/agent first thing, usually the running one. It becomes the first process of each container;
	// without it programs cannot be run.
	InitPath string
}

// VMInfo is what is known of a VM without taking it up.
type VMInfo struct {
	Dir     string    `json:"dir"`
	Running bool      `json:"running"`
	PID     int       `json:"pid,omitempty"` // of the VMM
	Driver  string    `json:"driver"`        // "qemu", "hcs", or "host" for this system itself
	OS      vmm.OS    `json:"os"`            // of the guest
	Accel   string    `json:"accel,omitempty"`
	Memory  int       `json:"memoryMiB,omitempty"`
	CPUs    int       `json:"cpus,omitempty"`
	Kernel  string    `json:"kernel,omitempty"`
	Started time.Time `json:"started,omitzero"`
	// Transport is how the guest of a QEMU VM is reached: "vsock" or "serial".
	Transport string `json:"transport,omitempty"`
}

var (
	// ErrNoVM says that a state directory holds no VM.
	ErrNoVM = errors.New("there is no utility VM")
	// ErrRunning says that the VM runs already.
	ErrRunning = errors.New("the utility VM runs already")
)

// complete fills in what is not set.
func (o *OpenOptions) complete() {
	o.Logger = discard(o.Logger)
	o.ResponseTimeout = cmp.Or(o.ResponseTimeout, time.Minute)
	if o.Locked == nil {
		o.Locked = func() {}
	}
}

func discard(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
