// Package bootimage builds the boot image of a Linux utility VM: a distribution's kernel that is installed on this
// host, and an initramfs with the guest's agent as /init (see [FindInit]), the kernel modules that a utility VM needs,
// mkfs.ext4, crun and catatonit.
//
// Both are cached by the hash of their content and written atomically, so that any number of processes may call [Build]
// at the same time.
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
// The archive is not compressed: QEMU copies it by DMA, at no measurable cost for the guest. On x86 the kernel is
// decompressed once on the host, and QEMU boots the ELF image directly (PVH). ARCHITECTURE.md has figures.
package bootimage
