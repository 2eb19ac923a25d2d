// Package wclayer works on the layers of a Windows host itself: what process-isolated Windows
// containers are mounted from, and the disks that virtual machines are given.
//
// [Host] is what can be asked of such a host. [System] is the real one; on other systems it answers
// [errors.ErrUnsupported]. It consists of two halves: the rules (order, retry, serialisation,
// deadlines, error texts), which are plain Go and run everywhere, and [API], which has one method for
// each function of vmcompute.dll, computestorage.dll, computecore.dll, cimfs.dll and virtdisk.dll that
// is called. Package wclayertest has an API in memory that keeps the rules of the real one.
//
// Calls into the platform cannot be cancelled. Each runs by itself; when the caller's context ends
// first, the caller has its answer at once, and what comes late is undone: an activation by a
// deactivation, a filter by its detachment, an image by its dismount. The next call on the same folder
// waits for that.
//
// Order: parents are always given top-most first, as layer descriptors and layer documents are.
package wclayer
