// Package strata starts and opens utility VMs with the drivers of this host: QEMU on Linux, the Host Compute Service
// on Windows, and the host itself as if it were a VM ([OpenHost]). Packages uvm (devices and mounts) and layers
// (container roots) work with the VMs. [Runs] and [Containers] manage the life cycle of containers; their processes
// may be killed at any moment.
//
//	vm, err := strata.StartVM(ctx, strata.VMOptions{Dir: "/var/lib/strata/vms/default"})
//	...
//	m, err := layers.Mount(ctx, layers.Request{VM: vm, ID: "web", Layers: ..., Scratch: "/scratch/web"})
//
// All state of a VM is in its state directory: a VM outlives the process that started it, and OpenVM reopens it in any
// process and rolls back what the last one left incomplete.
package strata

import (
	"cmp"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/stratavm/strata/internal/bootimage"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs"
)

// DefaultBootFiles is the folder with kernel and initrd.img of Linux guests on Windows hosts.
const DefaultBootFiles = hcs.DefaultBootFiles

// VMOptions configure a VM to start.
type VMOptions struct {
	// Dir is the state directory. It is created with mode 0700 and must not hold a running VM.
	Dir string
	// Name appears in process lists, logs and lists of compute systems. Empty: the base name of Dir.
	Name string
	// Driver is one of Drivers; empty: the default.
	Driver string
	// MemoryMiB is the guest's memory; 0: 256, on Windows hosts 1024.
	MemoryMiB int
	// CPUs is the number of the guest's processors; 0: as many as the host has, at most 2.
	CPUs int
	// NoShares says that no host folders will be shared with the VM, such as for volumes. A QEMU VM starts about a
	// tenth faster with it.
	NoShares bool
	// Accel is "auto" (or empty), "kvm" or "tcg". auto uses KVM if the VM starts with it, else TCG.
	Accel string
	// Transport is how a Linux host talks to the guest: "auto" (or empty), "vsock" or "serial". auto uses vsock if
	// host and guest support it.
	Transport string
	// Namespace is the path of the network namespace for the process of a QEMU VM, or vmm.NewNamespace for a new one
	// that ends with the VM; empty: that of this process. Others, such as CNI plugins, find it by the process;
	// NetworkNamespace describes what the VM gets from it. It needs root.
	Namespace string
	// Template restores the VM from a template instead of booting it: the saved state of an idle VM of the same kind
	// (kernel, agent, QEMU, memory, CPUs). The first VM of a kind saves one below Boot.CacheDir, which must be set.
	// QEMU only; the guest is reached by serial ports. Without a template the VM boots.
	Template bool
	// TemplateMissing, if not nil, is called with Template if there is no template of the kind. The VM then boots
	// without saving one, which would take almost half as long again; the caller should call MakeTemplate. It may be
	// called more than once: if the VM does not start with KVM, and then with TCG.
	TemplateMissing func()
	// Boot says how the boot image is built; if Image.Kernel is set, Image is used instead.
	Boot  BootOptions
	Image BootImage
	// OS is the guest system; empty: Linux. Windows guests and the next two fields are for Windows hosts only.
	OS        vmm.OS
	BootFiles string   // folder with kernel and initrd.img of a Linux guest; empty: DefaultBootFiles
	UVMLayers []string // layer folders of the image that a Windows guest boots, top layer first
	// RollbackTimeout bounds how long rolling back a failed or cancelled call may take; 0: 30 s.
	RollbackTimeout time.Duration
	// Logger may be nil: nothing is logged.
	Logger *slog.Logger
}

// OpenOptions are the options of OpenVM, OpenHost, OpenRunner and DryRun.
type OpenOptions struct {
	RollbackTimeout time.Duration // as in VMOptions
	Logger          *slog.Logger  // nil: nothing is logged
	// ResponseTimeout bounds how long a running VM may not respond (because its process is stopped, for example)
	// before the error matches uvm.ErrNoAnswer; 0: one minute. KillVM ends such a VM.
	ResponseTimeout time.Duration
	// Locked, if not nil, is called by OpenVM and OpenHost once they hold the VM's lock, before they contact the VM.
	Locked func()
}

// BootOptions say how the boot image of a Linux guest is built. With the zero value everything is taken from this
// host. Images are cached by content.
type BootOptions struct {
	Kernel     string // a bzImage, vmlinux or Image; empty: the newest kernel in KernelDir that has modules
	KernelDir  string // empty: /boot
	ModulesDir string // contains a folder for each kernel release; empty: /lib/modules
	Release    string // the release of Kernel; empty: the part of its file name after the first "-"
	// InitPath is a program with the guest agent, usually cmd/strata-init; it becomes the guest's /init. Empty: the
	// environment variable STRATA_INIT, else strata-init next to the running program or in PATH, else the running
	// program if it has the agent, else strata in PATH.
	InitPath string
	Mkfs     string // mke2fs; empty: mkfs.ext4 of this host; "none": leave it out
	// Runtime is the OCI runtime in the guest, crun or runc; empty: crun of this host, else runc; "none": leave it
	// out. Without a runtime the guest runs no containers.
	Runtime string
	// Pause is the program that keeps a container alive after its main program has ended, catatonit; empty: that of
	// this host; "none": leave it out. Without it the guest runs no containers.
	Pause    string
	CacheDir string // empty: "strata/boot" in the user's cache directory
	Logger   *slog.Logger
}

// BootImage is what a Linux guest boots: a kernel, an initramfs with the guest agent, and a kernel command line.
type BootImage = vmm.BootImage

// VMInfo describes a VM, as far as known without opening it.
type VMInfo = vmm.Info

var (
	// ErrNoVM says that a state directory holds no VM.
	ErrNoVM = vmm.ErrNoVM
	// ErrMemory says that the guest needs more memory to boot.
	ErrMemory = errors.New("too little memory for the guest")
	// ErrRunning says that the VM is running.
	ErrRunning = vmm.ErrRunning
	// ErrNoInit says that no program with the guest agent was found, or that the given program does not have it.
	ErrNoInit = bootimage.ErrNoInit
	// ErrNoKernel says that no guest kernel with its modules was found.
	ErrNoKernel = bootimage.ErrNoKernel
)

// complete sets the defaults.
func (o *OpenOptions) complete() {
	o.Logger = discard(o.Logger)
	o.ResponseTimeout = cmp.Or(o.ResponseTimeout, time.Minute)
	if o.Locked == nil {
		o.Locked = func() {}
	}
}

func (o OpenOptions) driver() vmm.OpenOptions {
	return vmm.OpenOptions{Logger: o.Logger}
}

func (o VMOptions) driver() vmm.StartOptions {
	s := vmm.StartOptions{Dir: o.Dir, Name: o.Name, OS: o.OS, MemoryMiB: o.MemoryMiB, CPUs: o.CPUs,
		NoShares: o.NoShares, Accel: o.Accel,
		Transport: o.Transport, Namespace: o.Namespace, Template: o.Template,
		TemplateMissing: o.TemplateMissing, Image: o.Image, BootFiles: o.BootFiles, UVMLayers: o.UVMLayers,
		Logger: o.Logger}
	if o.Boot.CacheDir != "" { // next to the boot images: they are specific to this host, too
		s.CacheDir = filepath.Join(o.Boot.CacheDir, "..", "kvm")
	}
	return s
}

func discard(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
