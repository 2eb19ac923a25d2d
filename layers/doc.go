// Package layers creates a root file system of an image's read-only layers and a scratch, inside a
// utility VM or on this system itself, and removes it again.
//
// [Mount] and [Mounted.Release] are the API to use: layers are named top-most first, the scratch by
// itself. [MountContainerLayers] and its companions have the signatures and behaviour of the package
// of the same name in Microsoft's hcsshim, for those who come from there: they take one list,
// top-most layer first, base next to last, scratch last (what the OCI runtime specification says of
// windows.layerFolders), and are thin shells around the former.
//
// What is mounted where:
//
//	in                  read-only layers                      scratch              root
//	a Linux VM          VPMEM, or SCSI when it does not fit   SCSI                 overlay, <guest root>/rootfs
//	a Windows VM        VSMB shares                           SCSI sandbox.vhdx    the scratch volume, filtered
//	this Windows host   parents of the layer filter           activated, prepared  volume GUID path
//
// A failed Mount rolls back what it did. Release is idempotent, attempts everything, and after a
// failure continues where it stopped.
package layers
