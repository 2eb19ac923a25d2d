// Package wclayer manages the layers of a Windows host: those from which process-isolated Windows containers are
// mounted, and the disks of virtual machines.
//
// [Host] is the interface, [System] its implementation; on other systems its methods return [errors.ErrUnsupported].
// System has the rules (order, retries, serialization, deadlines, error texts), which are portable Go, and calls the
// functions of vmcompute.dll, computestorage.dll, computecore.dll, cimfs.dll and virtdisk.dll through [API]. Package
// wclayertest has an in-memory API with the behaviour of the real one.
//
// Calls into the platform cannot be cancelled. If the caller's context ends during one, the caller returns at once, and
// the call is undone when it completes: an activation by a deactivation, an attached filter by its detachment, a
// mounted image by its dismount. The next call on the same folder waits for that.
//
// Parents are always given topmost first, as in layer descriptors and layer data.
package wclayer
