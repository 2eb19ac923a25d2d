// Package qemu drives QEMU on Linux hosts: it implements vmm.Machine over QMP, QEMU's control
// protocol, and over the guest compute protocol of package gcs.
//
// A machine is a QEMU process that runs on its own, with a private state directory:
//
//	machine.json   how it was started
//	pid            process id and start time, so that a reused id is never taken for the machine
//	qmp.sock       QEMU's control socket
//	gcs.N.sock     the guest's virtio-serial ports: 0 for control, the others for [OpenExec]; where the
//	               machine is reached over vsock, 0 serves until it is ready, and then none
//	port.N.lock    whoever works with a port holds a flock on it
//	attached/      what is attached where, and the descriptors of composite disks
//	saving         while a template is made of it, or it is loaded from one
//	qemu.log       what QEMU prints
//
// [Start] creates one, [Open] reopens one that another process started, [Inspect] and [Kill] need no
// cooperation of the machine. One process at a time controls a machine; others may run programs in
// it with [OpenExec].
//
// # What is trusted
//
// QEMU runs without network and default devices and inside its own seccomp sandbox. Paths reach it
// as JSON strings or links in the state directory, never as comma-separated options. What QEMU sends
// is bounded; what the guest sends is package gcs's business.
//
// The client of QMP is our own. That of github.com/digitalocean/go-qemu sends one command at a time, waits for its
// answer without a context, and ends at an answer of 64 KiB; a list of block nodes takes megabytes.
//
// # Devices
//
// Disks sit on virtio-scsi, at channel 0, target 0 and the LUN asked for. Persistent memory sits in
// fixed PCI slots, so that the guest finds slot n at device number 16+n of bus 0. QEMU cannot unplug
// it: a device stays until the machine ends. Its content must be a multiple of 2 MiB, which is what
// the guest's memory map wants; see vmm.Limits.VPMEMAlign.
//
// # What a machine is made of, and why
//
// The machine is a "pc": of QEMU's machines for x86 it is the smallest one that has persistent memory
// plugged into it while it runs (the microvm has none). Unused parts are left out. The kernel is
// entered by PVH where it is an ELF file. The four disk controllers are functions of one PCI device.
// What the kernel says goes to a ring in QEMU's memory, from where [Machine.Console] reads it. The
// firmware qboot was tried in place of SeaBIOS and made no difference.
//
// # Templates
//
// With Config.Template a machine is loaded from the first of its kind, which was held by its agent as soon as it had
// booted, saved by QEMU's migration to a file, and went on; or, where the caller would not wait for that, from one that
// MakeTemplate has booted and ended. The memory is no part of the migration: it is a file in
// memory already, which is copied while the machine stands still. A machine that is loaded maps a sealed copy for
// itself; the next one finds that in one that runs, else reads it from the cache. QEMU opens the file for
// writing although it only reads it; the seals keep one that was taken over by its guest from changing what others map.
//
// # Why one package
//
// A command line, the devices that are plugged later and what QMP says of them have to agree on names, addresses
// and limits of one machine; so building, starting, changing and observing it stand side by side, a file each.
package qemu
