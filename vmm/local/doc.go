// Package local is the driver for this system itself: a [vmm.Machine] that is no virtual machine. The
// same ledger, journal and recovery that a utility VM has serve for layers that are mounted without
// one.
//
// A machine is a directory:
//
//	machine.json   its name, and the boot of the system that it belongs to
//	devices/       one record for each device
//	mounts/        one record for each mount
//	containers/    one folder for each container that runs
//	fs/            guest paths: what is mounted at /run/x in the machine is at fs/run/x
//
// A device is a record and nothing else: the kernel learns of a disk when it is mounted, and forgets
// it with the mount (see package hostmount). A record of a mount is written before the mount is made
// and removed after it is gone, and counts only while the list of mounts has it. So whatever moment a
// process dies at, Observe tells the truth, a removal finishes what is left, and [Machine.Tidy] takes
// away the records that count for nothing.
//
// After a reboot nothing is mounted any more: [Open] then starts with an empty machine.
//
// What a machine of this kind does not have: VHDX disks (the scratch is a folder, through a Plan9
// share, or a raw file with ext4), dm-verity, encryption, persistent memory, composite disks.
//
// In a user namespace, where the kernel mounts no disks, layers are directory trees, through Plan9 shares
// too: Limits.LayerFolders says so. Its mounts end with the namespace.
//
// Containers are run by crun, else runc, from documents with docker's defaults; they see the kernel of this system,
// and its network unless their document says otherwise. The first process of a container is its PID 1, and the others
// end with it. What belongs to a container that runs is in containers/, one folder for each, which also holds the
// state of crun. A program outlives the process that started it only where that was killed: whoever unmounts the root
// next, or ends the container, ends it.
package local
