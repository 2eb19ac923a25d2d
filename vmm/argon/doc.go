// Package argon is the driver for a Windows host itself: its machine is the system that this program runs on, and
// process-isolated Windows containers ("Argon") have their roots on it. So they get what VMs get: a ledger, a
// journal, recovery and dry runs.
//
//	vmm.WritableLayer   ActivateLayer · DeactivateLayer: the scratch's disk becomes a volume
//	vmm.CombinedLayers  PrepareLayer · UnprepareLayer on the scratch; with the filter "UnionFS"
//	                    HcsAttachOverlayFilter · HcsDetachOverlayFilter on its volume
//	vmm.CIMVolume       CimMountImage and its relatives · CimDismountImage
//
// The calls themselves are package internal/wclayer's. What is applied is recorded in the machine's folder, before
// it is done and until it is undone, as Windows has no list of it; the records are those of one boot of the
// system, since no mount outlives that.
//
// No programs run in containers on the host: Exec answers errors.ErrUnsupported.
package argon
