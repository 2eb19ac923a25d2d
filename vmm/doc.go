// Package vmm defines the interface between the code that manages layers and the drivers of virtual machine monitors.
// Everything done to a machine is one value, a [Change]; a [Machine] applies it.
//
// A Change has a host half (a [Device] to attach or detach) and a guest half (a [Mount] to mount afterwards, or
// unmount before). Add does the host half first, Remove the guest half. If a half fails, the error is an [*ApplyError]
// that says for each half whether it is done, not done, or unknown, so that the caller can resume or roll back instead
// of guessing.
//
// Drivers are in the subpackages qemu, local, hcs, argon and vmmtest, which also has the test suite of the contract
// that every driver passes. The contract:
//
//   - Apply(Remove) of something that does not exist succeeds: removal is idempotent.
//   - Apply(Add) of exactly what exists already succeeds; if something else is at the same address,
//     it fails with [ErrOccupied] and changes nothing.
//   - A failed Add undoes its own half if the driver can be sure of that, and reports Unknown
//     otherwise. It never undoes the other half: the caller does, with the inverse Change.
//   - Apply returns promptly when ctx ends; the half in progress is Unknown. A later Apply for the
//     same address waits until the abandoned call has ended.
//   - Calls for different addresses may run concurrently.
//   - Once the machine is gone every call fails with an error matching [ErrGone].
package vmm
