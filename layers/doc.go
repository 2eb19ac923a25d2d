// Package layers creates a container's root file system from an image's read-only layers and a scratch, inside a
// utility VM or on the host itself, and removes it again.
//
// [Mount] and [Mounted.Release] are the API to use: it takes the layers, top layer first, and the scratch separately.
// [MountContainerLayers] and its companions have the signatures and behaviour of the package of the same name in
// Microsoft's hcsshim: they take one list, layers top layer first and the scratch last (as in windows.layerFolders of
// the OCI runtime specification), and are thin wrappers.
//
// What is mounted where:
//
//	in                  read-only layers                      scratch              root
//	a Linux VM          VPMEM, or SCSI when it does not fit   SCSI                 overlay, <guest root>/rootfs
//	a Windows VM        VSMB shares                           SCSI sandbox.vhdx    the scratch volume, filtered
//	this Windows host   parents of the layer filter           activated, prepared  volume GUID path
//
// A failed Mount rolls back. Release is idempotent, tries every resource, and after a failure continues where it
// stopped.
package layers
