// Package uvm keeps the ledger of one utility VM: which disk sits on which controller and LUN, which
// file on which persistent-memory device, which folder is shared under which name, what the guest
// has mounted where, and which container holds what.
//
// # Resources
//
// Every device and every guest mount is a resource with a small explicit state machine:
//
//	free → reserved → attaching → attached → detaching → free
//	                      │           │          │
//	                      └────── doubtful ──────┤     the last change's outcome is unknown
//	                                             └→ ejected    released by the guest, not by the host
//
// The transitions are the table in state.go. A mount rests on the device below it; where both are
// new (or both go) the machine sees one Change with two halves.
//
// # Leases and claims
//
// A [Claim] is what one container holds; it has a name and lists its [Lease]s. Resources with the
// same identity (resolved path, read-only, options) are shared: each user has a lease, and the
// resource goes when the last lease does. A count changes only after the effect it stands for is
// known. A second user of something still attaching waits for the first; a waiter that gives up
// leaves nothing behind. No lock is held across a call to the machine.
//
// Release of a lease or claim is idempotent and retryable: after a failure it can be called again
// and continues where it stopped. When the machine is gone everything counts as released.
//
// # Opening is recovering
//
// What is known is written to a journal in the state directory: the intent before an effect, the
// outcome after it. [Open] takes the lock of the directory, reads the journal, asks the machine what
// is really there, undoes what was under way and goes on. There is no other way to open.
//
// # Why one package
//
// The kinds of devices and mounts (a file each) change under one lock and are written to one journal. In packages
// of their own they would have to export the ledger's inside, on which its promises rest.
package uvm
