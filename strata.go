// Package strata starts and opens utility VMs with a driver of this host, QEMU on Linux, the Host Compute Service
// on Windows, and this system itself as if it were one ([OpenHost]). What to do with a VM is in packages uvm (its
// devices and mounts) and layers (container roots). [Runs] and [Containers] are the lives of containers, whose
// processes may be killed at any moment.
//
//	vm, err := strata.StartVM(ctx, strata.VMOptions{Dir: "/var/lib/strata/vms/default"})
//	...
//	m, err := layers.Mount(ctx, layers.Request{VM: vm, ID: "web", Layers: ..., Scratch: "/scratch/web"})
//
// The state directory of a VM is all there is to it: a VM outlives the process that started it, and
// OpenVM reopens it, in any process, and mends what the last one left half done.
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

// DefaultBootFiles is where those who ship kernel and initrd.img of Linux guests put them on Windows hosts.
const DefaultBootFiles = hcs.DefaultBootFiles

// VMOptions says what VM to start.
type VMOptions struct {
	// Dir is the state directory. It is made, for the owner only, and must not hold a running VM.
	Dir string
	// Name shows in process lists and logs, and lists of compute systems. Empty: the last part of Dir.
	Name string
	// Driver is the name of a driver, one of Drivers; empty: the first of them.
	Driver string
	// MemoryMiB is the guest's memory; 0: 256, on Windows hosts 1024.
	MemoryMiB int
	// CPUs of the guest; 0: as many as the host has, at most 2.
	CPUs int
	// NoShares: no folders of this host will be shared with the VM, as for volumes. A VM of QEMU starts about a tenth
	// faster without.
	NoShares bool
	// Accel is "auto" (or empty), "kvm" or "tcg". auto takes KVM only where a VM truly runs with it.
	Accel string
	// Transport is how a Linux host reaches the guest: "auto" (or empty), "vsock" or "serial". auto takes
	// vsock where both have it.
	Transport string
	// Namespace is the file of the network namespace that the process of a VM of QEMU is in, or vmm.NewNamespace for one
	// that is made and goes with it; empty: this process's. Others find it by that process, such as CNI plugins; see
	// NetworkNamespace for what the VM has of it. It needs root.
	Namespace string
	// Template has the VM loaded from a template: one of its kind (kernel, agent, QEMU, memory, CPUs) that was saved
	// when it was idle. The first VM of a kind makes it, below Boot.CacheDir, which has to be given; QEMU only. The guest
	// is reached by serial ports then. Where there is no template the VM boots.
	Template bool
	// TemplateMissing, where it is set, is called with Template when there is no template of the kind. The VM then
	// boots and is not saved, which would take almost half as long again; it is for the caller to call MakeTemplate.
	TemplateMissing func()
	// Boot says what the VM boots; Image, when its Kernel is set, is taken instead of building one.
	Boot  BootOptions
	Image BootImage
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
}

// BootOptions says what the boot image of a Linux guest is built from. The zero value takes everything from
// this host. Images are cached by content.
type BootOptions struct {
	Kernel     string // a bzImage, vmlinux or Image; empty: the newest one in KernelDir with modules
	KernelDir  string // empty: /boot
	ModulesDir string // holds a folder per kernel release; empty: /lib/modules
	Release    string // the release of Kernel; empty: what follows the first "-" of its name
	// InitPath is a program that carries the guest's agent, usually cmd/strata-init, and becomes the guest's
	// /init. Empty: the one that the environment variable STRATA_INIT names, else strata-init beside the running
	// program or in PATH, else the running program if it carries the agent, else strata in PATH.
	InitPath string
	Mkfs     string // mke2fs; empty: mkfs.ext4 of this host; "none": leave it out
	// Runtime is what the guest runs containers by, crun or runc; empty: crun of this host, else runc; "none": leave it
	// out. Without one the guest runs no containers.
	Runtime string
	// Pause is what keeps a container whose own program has ended, catatonit; empty: that of this host; "none": leave it
	// out. Without it the guest runs no containers.
	Pause    string
	CacheDir string // empty: "strata/boot" in the user's cache directory
	Logger   *slog.Logger
}

// BootImage is what a Linux guest boots: a kernel, an initramfs with the guest's agent, and the kernel's command line.
type BootImage = vmm.BootImage

// VMInfo is what is known of a VM without opening it.
type VMInfo = vmm.Info

var (
	// ErrNoVM says that a state directory holds no VM.
	ErrNoVM = vmm.ErrNoVM
	// ErrMemory says that a guest cannot boot with so little memory.
	ErrMemory = errors.New("too little memory for the guest")
	// ErrRunning says that the VM runs already.
	ErrRunning = vmm.ErrRunning
	// ErrNoInit says that no program with the guest's agent was found, or that the one given does not carry it.
	ErrNoInit = bootimage.ErrNoInit
	// ErrNoKernel says that no kernel with its modules was found to boot guests with.
	ErrNoKernel = bootimage.ErrNoKernel
)

// complete fills in what is not set.
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
	if o.Boot.CacheDir != "" { // next to the boot images, which belong to this host too
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
