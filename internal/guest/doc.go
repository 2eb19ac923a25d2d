// Package guest is the Linux guest's end of the guest compute protocol: PID 1 of a utility VM.
//
// [Main] is called by a program that was started as PID 1, and [Stage] first thing by any program that
// contains the agent, because the agent starts that program again to be the first process of each
// container. [Serve] is one bridge session on any operating system, over a [Runtime] that does the
// work.
//
// The agent's state belongs to the guest, not to a session: the host may vanish and come back, through
// several ports at the same time, and finds mounts, processes and exit codes as they are. Requests run
// concurrently; those for one mount path, one device or one container wait for each other.
//
// Unmounting is never lazy and nothing is deleted recursively: what is in use stays and is reported
// with its holder, and only empty directories are removed.
package guest
