// Package layers makes a root file system of an image's read-only layers and a scratch, inside a
// utility VM or on a Windows host itself, and takes it away again.
//
// [Mount] and [Mounted.Release] are the API to use: layers are named top-most first, the scratch by
// itself. [MountContainerLayers] and its companions have the signatures and behaviour of the package
// of the same name in Microsoft's hcsshim, for those who come from there: they take one list,
// top-most layer first, base next to last, scratch last (what the OCI runtime specification says of
// windows.layerFolders), and are thin shells around the former.
//
// What is mounted where:
//
//	VM             read-only layers                        scratch               root
//	Linux          VPMEM, or SCSI when it does not fit     SCSI                  overlay, <guest root>/rootfs
//	Windows        VSMB shares                             SCSI sandbox.vhdx     the scratch volume with the layer filter
//	none (Argon)   parents of the layer filter             activated, prepared   volume GUID path
//
// A failed Mount takes back what it did. Release is idempotent, attempts everything, and after a
// failure continues where it stopped.
package layers
