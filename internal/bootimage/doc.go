// Package bootimage makes what a Linux utility VM boots from: a kernel that is installed on this
// host (a distribution's) and an initramfs with the guest's agent as /init (see [FindInit]), the kernel
// modules a utility VM needs, mkfs.ext4, crun and catatonit.
//
// Both are cached by content: [Build] hashes what goes in and writes only what is not there yet, by
// rename, so that any number of processes may build at the same time.
//
// # What is in the initramfs
//
//	/init                     strata-init, or another program that as PID 1 is the guest agent
//	/lib/modules/NAME.ko      modules, decompressed
//	/lib/modules.strata       the modules needed to talk to the host: one file name per line,
//	                          relative to /lib/modules, in load order
//	/lib/modules.strata.lazy  the others: "feature: file file ...", in load order, one feature per
//	                          line; the agent loads them when they are first needed. A feature that
//	                          is built into the kernel, or that the kernel lacks, has no line
//	/sbin/mkfs.ext4           with the shared libraries it names, where the host has it
//	/sbin/crun                or /sbin/runc, likewise: what runs containers
//	/sbin/catatonit           likewise: what keeps them, see catatonit(1)
//
// The archive is not compressed, which costs the guest nothing that can be measured, and spares the host
// the packing; QEMU copies it by DMA. The kernel is unpacked on the host once (x86): QEMU enters the ELF
// image directly (PVH) and the guest decompresses nothing. ARCHITECTURE.md has figures.
package bootimage
