package hcs

import (
	"fmt"
	"strings"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/hostpath"
)

// Ports on the host that a Linux guest connects to, as vsock numbers.
const (
	EntropyPort uint32 = 1          // init reads seed bytes from it
	LogPort     uint32 = 109        // the agent's output, one JSON object per line
	BridgePort  uint32 = 0x40000000 // the guest compute protocol
)

// rootOnVPMEM makes the kernel mount the disk image in the first VPMEM device as its root.
const rootOnVPMEM = "root=/dev/pmem0 ro rootwait init=/init"

// document creates the create document of a Linux VM.
func (o *OptionsLCOW) document(count int32) *hcsschema.ComputeSystem {
	doc := o.system(count)
	vm := doc.VirtualMachine
	vm.ComputeTopology.Memory.EnableColdDiscardHint = o.EnableColdDiscardHint
	vm.Devices.Plan9 = &hcsschema.Plan9{} // required for adding shares later
	for n := range o.SCSIControllerCount {
		if vm.Devices.Scsi == nil {
			vm.Devices.Scsi = map[string]hcsschema.Scsi{}
		}
		vm.Devices.Scsi[hcsschema.Controller(uint8(n), o.SCSIControllerGUIDs)] = hcsschema.Scsi{}
	}
	if o.VPMemDeviceCount > 0 {
		vm.Devices.VirtualPMem = &hcsschema.VirtualPMemController{
			MaximumCount: o.VPMemDeviceCount, MaximumSizeBytes: o.VPMemSizeBytes}
	}
	if o.UseGuestConnection && !o.ExternalGuestConnection {
		vm.GuestConnection = &hcsschema.GuestConnection{UseVsock: true, UseConnectedSuspend: true}
	}
	if o.ConsolePipe != "" {
		vm.Devices.ComPorts = map[string]hcsschema.ComPort{"0": {NamedPipe: o.ConsolePipe}}
	}
	if o.EnableGraphicsConsole {
		vm.Devices.Keyboard = &hcsschema.Keyboard{}
		vm.Devices.EnhancedModeVideo = &hcsschema.EnhancedModeVideo{}
		vm.Devices.VideoMonitor = &hcsschema.VideoMonitor{}
	}
	rootfs := hostpath.Join(o.BootFilesPath, o.RootFSFile)
	if o.PreferredRootFSType == RootFSVHD {
		vm.Devices.VirtualPMem.Devices = map[string]hcsschema.VirtualPMemDevice{
			"0": {HostPath: rootfs, ReadOnly: true, ImageFormat: imageFormat(rootfs, "")}}
	}
	if o.KernelDirect {
		boot := &hcsschema.LinuxKernelDirect{
			KernelFilePath: hostpath.Join(o.BootFilesPath, o.KernelFile), KernelCmdLine: o.commandLine(count)}
		if o.PreferredRootFSType == RootFSInitRd {
			boot.InitRdPath = rootfs
		}
		vm.Chipset.LinuxKernelDirect = boot
		return doc
	}
	vm.Chipset.Uefi = &hcsschema.Uefi{BootThis: &hcsschema.UefiBootEntry{
		DeviceType: "VmbFs", DevicePath: `\` + o.KernelFile,
		OptionalData: o.commandLine(count), VmbFsRootPath: o.BootFilesPath,
	}}
	return doc
}

// commandLine returns the kernel command line. Without root arguments it begins with a space, as hcsshim's does.
func (o *OptionsLCOW) commandLine(count int32) string {
	var root string
	switch {
	case o.PreferredRootFSType == RootFSVHD:
		root = rootOnVPMEM
	case !o.KernelDirect:
		root = "initrd=/" + o.RootFSFile
	}
	args := []string{root}
	if o.GuestGeneration == GuestCurrent {
		// Newer kernels have two vsock transports and would select the wrong one.
		args = append(args, "initcall_blacklist=virtio_vsock_init")
	}
	if o.ConsolePipe != "" {
		args = append(args, "8250_core.nr_uarts=1 8250_core.skip_txen_test=1 console=ttyS0,115200")
	} else {
		args = append(args, "8250_core.nr_uarts=0")
	}
	if o.EnableGraphicsConsole {
		args = append(args, "console=tty")
	}
	if !o.debugging() {
		args = append(args, "panic=-1 quiet")
	}
	if o.KernelBootOptions != "" {
		args = append(args, o.KernelBootOptions)
	}
	if !o.VPCIEnabled {
		args = append(args, "pci=off")
	}
	args = append(args, fmt.Sprintf("nr_cpus=%d brd.rd_nr=0 pmtmr=0 --", count), o.initArgs())
	return strings.Join(args, " ")
}

// debugging reports whether the VM has a console.
func (o *OptionsLCOW) debugging() bool { return o.ConsolePipe != "" || o.EnableGraphicsConsole }

// initArgs returns the arguments of init: the port for entropy and the command to run, which is the agent with its
// output sent to the log port. With a console, a shell runs too.
func (o *OptionsLCOW) initArgs() string {
	run := "/bin/vsockexec"
	if o.ForwardStdout {
		run += fmt.Sprintf(" -o %d", LogPort)
	}
	if o.ForwardStderr {
		run += fmt.Sprintf(" -e %d", LogPort)
	}
	run += " " + o.ExecCommandLine
	if o.debugging() {
		run = `sh -c "` + run + ` & exec sh"`
	}
	return fmt.Sprintf("-e %d %s", EntropyPort, run)
}

// imageFormat returns the format of a VPMEM file: told if set, otherwise by the file name extension.
func imageFormat(path string, told string) hcsschema.ImageFormat {
	if told == "vhdx" || told == "" && strings.EqualFold(hostpath.Ext(path), ".vhdx") {
		return hcsschema.ImageVHDX
	}
	return hcsschema.ImageVHD1
}
