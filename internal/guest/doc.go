// Package guest is the Linux guest's agent: PID 1 of a utility VM.
//
// [Main] is called by a program that was started as PID 1.
//
// This package assembles the agent and does what only PID 1 does: the system's own mounts, kernel modules, and the
// ports on which hosts connect. The rest are four packages: gcsserver serves the protocol over an interface
// (gcsserver.Runtime), mounts manages mounts, procs processes and containers, network the networks of containers.
// mounts and procs use each other through small interfaces (mounts.Processes, procs.Roots).
//
// The agent's state belongs to the guest, not to a session: a host may disconnect and reconnect, also through several
// ports at a time, and finds mounts, processes and exit codes unchanged. Requests run concurrently; those for the same
// mount path, device or container are serialized.
package guest
