// Package gcsserver is the guest's side of the guest compute protocol, for any operating system. [Serve] serves one
// bridge session by a [Runtime], which does the work.
//
// The state belongs to the Runtime, not to a session: a host may disconnect and reconnect, also through several ports
// at a time, and finds mounts, processes and exit codes unchanged. Requests run concurrently; the Runtime serializes
// those that conflict.
package gcsserver
