// Package gcsserver answers the requests of the guest compute protocol on any operating system. [Serve] is one
// bridge session, over a [Runtime] that does the work.
//
// The state belongs to the Runtime, not to a session: the host may vanish and come back, through several ports at
// the same time, and finds mounts, processes and exit codes as they are. Requests run concurrently; it is for the
// Runtime to let those for one thing wait for each other.
package gcsserver
