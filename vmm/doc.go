// Package vmm is the driver interface between everything that knows about layers and the programs that run
// virtual machines. Whatever is done to a machine is one value, a [Change]; a [Machine] applies it.
//
// A Change has a host half (a [Device] that is attached or detached) and a guest half (a [Mount]
// action: what is mounted after, or unmounted before). Add does host then guest, Remove guest then
// host. When a half fails the error is an [*ApplyError] that says, per half, whether it is done, not
// done, or unknown, so that the caller can resume or undo instead of guessing.
//
// Drivers live in the packages below this one: qemu, local, hcs, argon, and vmmtest, which also holds the
// contract suite that every driver passes. The rules of the contract:
//
//   - Apply(Remove) of something that is not there succeeds: removal is idempotent.
//   - Apply(Add) of exactly what is there already succeeds; of something else at the same address
//     it fails with [ErrOccupied] and changes nothing.
//   - A failed Add leaves its own half undone where the driver can know so, and says Unknown where
//     it cannot. It never undoes the other half: the caller does, with the inverse Change.
//   - Apply returns promptly when ctx ends, with the half in question Unknown. A later Apply for the
//     same address waits until the abandoned call has come to rest.
//   - Calls for different addresses may run concurrently.
//   - Once the machine is gone every call fails with an error matching [ErrGone].
package vmm
