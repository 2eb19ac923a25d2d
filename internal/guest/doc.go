// Package guest is the Linux guest's agent: PID 1 of a utility VM.
//
// [Main] is called by a program that was started as PID 1.
//
// The agent is put together here, with what only PID 1 does: the system's own mounts, kernel modules, and the
// ports on which hosts call. The rest are four packages: gcsserver answers the protocol and says what it wants
// done (gcsserver.Runtime), mounts is what is mounted, procs is what runs, network is what networks containers have.
// mounts and procs know each other by an interface of a few methods only (mounts.Processes, procs.Roots).
//
// The agent's state belongs to the guest, not to a session: the host may vanish and come back, through
// several ports at the same time, and finds mounts, processes and exit codes as they are. Requests run
// concurrently; those for one mount path, one device or one container wait for each other.
package guest
