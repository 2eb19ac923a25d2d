// Package hcstest holds a Host Compute Service in memory. It keeps the service's rules (what exists
// once, what comes before what, which code a breach gets), records every call in the format of the
// conformance traces, and fails, delays or loses calls as it is told. It also plays the guest, at the
// other end of the service's own connection or of ours.
package hcstest
