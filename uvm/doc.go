// Package uvm keeps the ledger of a utility VM: which disk is on which SCSI controller and LUN, which file is on which
// persistent-memory device, which folder is shared under which name, what is mounted where in the guest, and which
// container holds what.
//
// # Resources
//
// Every device and every guest mount is a resource with a small state machine:
//
//	free → reserved → attaching → attached → detaching → free
//	                      │           │          │
//	                      └────── doubtful ──────┤     the last change's outcome is unknown
//	                                             └→ ejected    released by the guest, not by the host
//
// state.go has the table of transitions. A mount is on top of its device; if both are added or removed together, the
// machine gets one Change with both halves.
//
// # Leases and claims
//
// A [Claim] is what one container holds: a name and a list of [Lease]s. Resources with the same identity (resolved
// path, read-only, options) are shared: each user has a lease, and the resource is removed with the last one.
// Reference counts change only once the outcome of a change is known. A second user of a resource that is being
// attached waits for the first; a waiter whose context ends has no effect. No lock is held during a call to the
// machine.
//
// Release of a lease or claim is idempotent and retryable: after a failure it can be called again
// and continues where it stopped. When the machine is gone, everything counts as released.
//
// # Opening is recovering
//
// The ledger is written to a journal in the state directory: the intent before a change, the outcome after it. [Open]
// takes the lock of the directory, reads the journal, asks the machine what is really attached and mounted, and rolls
// back what was in progress. There is no other way to open a VM.
//
// # Why one package
//
// The kinds of devices and mounts (a file each) change under one lock and are written to one journal. In separate
// packages, the internals of the ledger would have to be exported.
package uvm
