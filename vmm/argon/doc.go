// Package argon is the driver for a Windows host itself: its machine is the system that this program runs on, and has
// the roots of process-isolated Windows containers ("Argon"). They are thus managed with the same ledger, journal,
// recovery and dry runs as those in VMs.
//
//	vmm.WritableLayer   ActivateLayer · DeactivateLayer: the scratch's disk becomes a volume
//	vmm.CombinedLayers  PrepareLayer · UnprepareLayer on the scratch; with the filter "UnionFS"
//	                    HcsAttachOverlayFilter · HcsDetachOverlayFilter on its volume
//	vmm.CIMVolume       CimMountImage and its relatives · CimDismountImage
//
// The calls themselves are in package internal/wclayer. As Windows has no list of what is applied, the machine's folder
// has records, each from before it is applied until it is removed. They are discarded after a reboot, which no mount
// survives.
//
// Running programs in containers on the host is not supported: Exec fails with errors.ErrUnsupported.
package argon
