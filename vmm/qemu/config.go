package qemu

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/vmm"
)

// Accelerators.
const (
	AccelAuto = "auto" // KVM if a VM really runs with it, otherwise TCG
	AccelKVM  = "kvm"
	AccelTCG  = "tcg" // software emulation
)

// Transports: the channels to the guest agent.
const (
	TransportAuto   = "auto"   // vsock if host and guest support it, otherwise serial ports
	TransportVSock  = "vsock"  // for any number of processes at a time
	TransportSerial = "serial" // virtio-serial, one port per process
)

// Config configures a machine.
type Config struct {
	// Dir is the absolute path of the state directory, of any length. It is created with mode 0700 and must not have a
	// running machine.
	Dir string
	// ID names the machine: letters, digits, ".", "_" and "-", at most 64 of them. Empty: the last element of Dir if
	// that is a valid name, otherwise "strata".
	ID string

	Kernel  string   // an ELF with a PVH entry boots fastest; a bzImage does too
	Initrd  string   // may be empty
	Cmdline []string // kernel command line

	MemoryMiB int    // 0: 256
	CPUs      int    // 0: 1
	NoShares  bool   // no folders of the host will be shared, so virtiofsd need not share the memory
	Accel     string // AccelAuto (or empty), AccelKVM, AccelTCG
	// CacheDir is the directory for templates, and for AccelAuto to record, until the host reboots, that KVM does not
	// work. Empty: neither is stored.
	CacheDir string
	// KVMTrial is the boot timeout under KVM with AccelAuto, which then falls back to TCG; 0: 20 s.
	KVMTrial time.Duration
	// BootTime is the boot timeout; 0: 5 minutes.
	BootTime  time.Duration
	Transport string // TransportAuto (or empty), TransportVSock, TransportSerial
	Namespace string // see vmm.StartOptions
	// ExecPorts is the maximum number of concurrent OpenExec sessions over serial ports; 0: 16. Each port takes half a
	// MiB of the guest's memory.
	ExecPorts int
	// Program is the path of QEMU; empty: qemu-system-x86_64 in PATH.
	Program string
	// Logger may be nil: nothing is logged.
	Logger *slog.Logger

	// Template loads the machine from a template of its kind in CacheDir. If there is none, the machine boots and is
	// saved as the template before Start returns. If it can be neither loaded nor saved, it just boots. A machine that
	// is loaded or saved has no vsock: TransportAuto means TransportSerial.
	Template bool
	// TemplateMissing, if set, is called if Template is set and there is no template of the kind. The machine then
	// boots and is not saved; the caller may make a template with MakeTemplate. It may be
	// called more than once: for a trial of KVM, and then for TCG.
	TemplateMissing func()
	// ImageID identifies the content of Kernel and Initrd. Empty: Template has no effect.
	ImageID string

	// memory, if set, backs the guest's memory.
	memory *guestMemory
	// idle gives the machine only processor time that is otherwise idle.
	idle bool
	// connect replaces the guest protocol in tests.
	connect connectFunc
	// rewrite changes the arguments of QEMU in tests.
	rewrite func([]string) []string
	// kvmUsable replaces the check of this host in tests.
	kvmUsable func() error
}

// The slots of a machine.
const (
	controllers = 4
	lunsPerBus  = 64
	// pmemFirst is the PCI device number of VPMEM slot 0; the slots end at number 31.
	pmemFirst   = 16
	pmemDevices = 16
	// pmemAlign is the granularity of the memory map of a Linux guest: a sub-section of a memory section.
	pmemAlign = 2 << 20
	maxPorts  = 31 // of one virtio-serial bus
)

var (
	// ErrPortsTaken is matched by the error when all serial ports of the machine are in use.
	ErrPortsTaken = errors.New("all ports for running programs in the machine are in use")
)

var validID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func (c Config) withDefaults() (Config, error) {
	if c.MemoryMiB == 0 {
		c.MemoryMiB = 256
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.Accel == "" {
		c.Accel = AccelAuto
	}
	if c.Transport == "" {
		c.Transport = TransportAuto
	}
	if c.KVMTrial == 0 {
		c.KVMTrial = 20 * time.Second
	}
	if c.BootTime == 0 {
		c.BootTime = 5 * time.Minute
	}
	if c.ExecPorts == 0 {
		c.ExecPorts = 16
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.connect == nil {
		c.connect = connectGCS
	}
	if c.kvmUsable == nil {
		c.kvmUsable = kvmUsable
	}
	if c.ID == "" {
		if c.ID = filepath.Base(c.Dir); !validID.MatchString(c.ID) {
			c.ID = "strata"
		}
	}
	bad := func(format string, args ...any) (Config, error) {
		return c, fmt.Errorf("qemu: "+format, args...)
	}
	switch {
	case !filepath.IsAbs(c.Dir):
		return bad("state directory %q: give an absolute path", c.Dir)
	case !validID.MatchString(c.ID):
		return bad("machine id %q: use letters, digits, '.', '_' and '-', at most 64", c.ID)
	case c.MemoryMiB < 32 || c.MemoryMiB > 1<<20:
		return bad("%d MiB of memory: give 32 or more", c.MemoryMiB)
	case c.CPUs < 1 || c.CPUs > 255:
		return bad("%d CPUs: give 1 to 255", c.CPUs)
	case c.Accel != AccelAuto && c.Accel != AccelKVM && c.Accel != AccelTCG:
		return bad("accelerator %q: use auto, kvm or tcg", c.Accel)
	case c.Transport != TransportAuto && c.Transport != TransportVSock && c.Transport != TransportSerial:
		return bad("transport %q: use auto, vsock or serial", c.Transport)
	case c.ExecPorts < 0 || c.ExecPorts > maxPorts-1:
		return bad("%d ports for programs: give at most %d", c.ExecPorts, maxPorts-1)
	case strings.ContainsAny(strings.Join(c.Cmdline, ""), "\n\x00"):
		return bad("a word of the kernel command line holds a newline")
	}
	return c, nil
}

// description is the content of machine.json, which Open needs.
type description struct {
	ID        string    `json:"id"`
	Program   string    `json:"program"`
	Kernel    string    `json:"kernel,omitempty"`
	MemoryMiB int       `json:"memoryMiB"`
	CPUs      int       `json:"cpus"`
	NoShares  bool      `json:"noShares,omitempty"`
	Accel     string    `json:"accel"`
	ExecPorts int       `json:"execPorts"`
	Transport string    `json:"transport"`          // vsock or serial
	CID       uint32    `json:"cid,omitempty"`      // the guest's address on vsock
	Token     string    `json:"token,omitempty"`    // with which the host authenticates to the guest
	UID       int       `json:"uid,omitempty"`      // the user that QEMU runs as; 0: the user that started it
	Template  string    `json:"template,omitempty"` // the key of the template it was loaded from
	Saved     bool      `json:"saved,omitempty"`    // it was, or was to be, saved as a template after it had booted
	Started   time.Time `json:"started"`
}

// Limits returns the limits of a machine with memoryMiB of memory; 0 means 256. Each page of persistent memory costs
// the guest 64 bytes for its page map: if all slots have devices as large as the memory, a quarter of the memory.
func Limits(memoryMiB int) vmm.Limits {
	if memoryMiB == 0 {
		memoryMiB = 256
	}
	return vmm.Limits{
		SCSIControllers: controllers, SCSILUNs: lunsPerBus,
		VPMEMDevices: pmemDevices, VPMEMMaxBytes: uint64(memoryMiB)<<20 + vhdFooter,
		VPMEMAlign: pmemAlign, VPMEMRetained: true, NICs: nics,
		CompositeDisks: true, EROFS: true, Verity: true, Observes: true,
		VirtioFSShares: maxShares,
	}
}

// limits returns the Limits of a machine, without shares if noShares.
func limits(memoryMiB int, noShares bool) vmm.Limits {
	l := Limits(memoryMiB)
	if noShares {
		l.VirtioFSShares = 0
	}
	return l
}

// memoryObject returns QEMU's object for the guest's memory. Memory that is shared with other processes, for shared
// folders, has no huge pages; without NoShares a boot takes a tenth more processor time.
func (c Config) memoryObject() string {
	if c.memory != nil {
		share := map[bool]string{true: "on", false: "off"}[c.memory.share]
		return fmt.Sprintf("memory-backend-file,id=mem,size=%dM,mem-path=/proc/self/fd/%d,share=%s", c.MemoryMiB,
			portFD+c.ExecPorts+1, share)
	}
	if c.NoShares {
		return fmt.Sprintf("memory-backend-ram,id=mem,size=%dM", c.MemoryMiB)
	}
	return fmt.Sprintf("memory-backend-memfd,id=mem,size=%dM,share=on", c.MemoryMiB)
}

// Descriptors that QEMU inherits. It opens nothing by name, so it needs no permissions for the files, and the length of
// paths does not matter. Its sockets are listening already, so nobody has to wait for them to appear.
const (
	firstFD  = 3
	qmpFD    = firstFD
	statusFD = qmpFD + 1
	pidFD    = statusFD + 1
	kernelFD = pidFD + 1
	initrdFD = kernelFD + 1
	portFD   = initrdFD + 1
)

// arguments returns the arguments of QEMU. The descriptors are inherited in the order of the constants above, followed
// by the guest's ports and then by the vsock device or the memory, if there is one; never both.
func (c Config) arguments(accel string, v *vsockDevice) []string {
	mem := c.MemoryMiB
	args := []string{
		"-name", "guest=" + c.ID + ",process=strata-" + c.ID[:min(len(c.ID), 8)],
		"-machine", machineOptions + ",memory-backend=mem",
		"-object", c.memoryObject(),
		"-cpu", "max", "-accel", accelOptions(accel),
		"-smp", processors(accel, c.CPUs),
		// The address range above the memory is for the persistent memory devices.
		"-m", fmt.Sprintf("%dM,slots=%d,maxmem=%dM", mem, pmemDevices, mem+pmemDevices*(mem+2)),
		"-nodefaults", "-no-user-config", "-nic", "none", "-display", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", qmpFD),
		"-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=status,fd=%d,server=on,wait=off", statusFD),
		"-mon", "chardev=status,mode=control",
		// The guest's console goes to a ring buffer: a hostile guest cannot fill the disk with it.
		"-chardev", "ringbuf,id=console,size=65536", "-device", "isa-serial,chardev=console",
		"-device", fmt.Sprintf("virtio-serial-pci,id=gcs,addr=2,max_ports=%d,disable-legacy=on", maxPorts),
	}
	for i := range c.ExecPorts + 1 {
		args = append(args,
			"-chardev", fmt.Sprintf("socket,id=gcs%d,fd=%d,server=on,wait=off", i, portFD+i),
			"-device", fmt.Sprintf("virtserialport,bus=gcs.0,nr=%d,name=org.stratavm.gcs.%d,chardev=gcs%d", i+1, i, i))
	}
	for i := range controllers {
		// Functions of one PCI device: the guest probes one device number instead of four.
		args = append(args, "-device", fmt.Sprintf(
			"virtio-scsi-pci,id=scsi%d,addr=3.%d,multifunction=on,num_queues=1,disable-legacy=on", i, i))
	}
	for i := range uint32(shareBridges) {
		args = append(args, "-device", fmt.Sprintf("pci-bridge,id=%s,addr=%x,chassis_nr=%d,shpc=on", shareBus(i),
			bridgeFirst+i, 1+i))
	}
	if c.memory != nil { // unique to each machine: a kernel that supports it reseeds its random numbers at once
		args = append(args, "-device", "vmgenid,guid=auto")
	}
	if c.memory != nil && c.memory.state != nil {
		args = append(args, "-incoming", "defer")
	}
	if v != nil {
		args = append(args, "-device", fmt.Sprintf("vhost-vsock-pci,addr=4,guest-cid=%d,vhostfd=%d,disable-legacy=on", v.cid,
			portFD+c.ExecPorts+1))
	}
	if c.Kernel == "" {
		return append(args, "-S")
	}
	words := []string{"console=ttyS0", "swiotlb=noforce", fmt.Sprintf("strata.pmem=pci:0000:00:%02x.0", pmemFirst)}
	if v != nil {
		words = append(words, "strata.vsock="+gcs.TokenDigest(v.token))
	}
	words = append(words, c.Cmdline...)
	args = append(args, "-kernel", fmt.Sprintf("/proc/self/fd/%d", kernelFD), "-append", strings.Join(words, " "))
	if c.Initrd != "" {
		args = append(args, "-initrd", fmt.Sprintf("/proc/self/fd/%d", initrdFD))
	}
	return args
}

const machineOptions = "pc,graphics=off,usb=off,hpet=off,vmport=off,smbus=off,sata=off,i8042=off," +
	"mem-merge=off,dump-guest-core=off"

// processors returns QEMU's option for the number of CPUs. TCG leaves out memory barriers in a machine that can have
// only one CPU: then the guest's driver of a virtio device can miss that the device, which is another thread or
// process, is about to wait for a notification.
func processors(accel string, cpus int) string {
	if accel == AccelTCG && cpus == 1 {
		return "cpus=1,maxcpus=2"
	}
	return fmt.Sprint(cpus)
}

func accelOptions(accel string) string {
	if accel == AccelTCG {
		return "tcg,tb-size=128"
	}
	return accel
}
