// Package local is the driver for the host itself: a [vmm.Machine] that is not a virtual machine. Layers that are
// mounted on the host are thus managed with the same ledger, journal and recovery as those of a utility VM.
//
// A machine is a directory:
//
//	machine.json   its name, and the boot id of the system
//	devices/       one record for each device
//	mounts/        one record for each mount
//	containers/    one folder for each running container
//	fs/            guest paths: /run/x in the machine is fs/run/x
//
// A device is only a record: a disk is attached to the kernel when it is mounted, and detached with the mount (see
// package hostmount). The record of a mount is written before the mount is made and removed after it is unmounted, and
// counts only while the kernel's list of mounts has the mount. So if a process dies at any time, Observe is still
// correct, a removal completes what is left, and [Machine.Tidy] removes the records without a mount.
//
// After a reboot nothing is mounted: [Open] then starts with an empty machine.
//
// Not supported are VHDX disks (the scratch is a folder, as a Plan9 share, or a raw file with ext4), dm-verity,
// encryption, persistent memory and composite disks.
//
// In a user namespace, where the kernel mounts no disks, layers are directory trees, also as Plan9 shares;
// Limits.LayerFolders reports that. The mounts end with the namespace.
//
// Containers are run by crun or, without it, runc, from documents with docker's defaults. They share the kernel of the
// host, and its network unless their document says otherwise. The first process of a container is its PID 1, and the
// others end with it. The folder of a running container in containers/ also has the state of crun. A program outlives
// the process that started it only if that process was killed; it is then killed when its root is unmounted or its
// container is ended.
package local
