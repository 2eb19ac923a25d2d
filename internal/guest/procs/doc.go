// Package procs runs containers and processes, in a Linux guest for its hosts, or on a Linux system without a guest.
//
// A [Table] serves the requests about containers and processes. It uses [Roots] for the mounted roots of containers.
// After [Table.UseRuntime], crun runs the containers. An instance is one run of a container, from the start of its
// first process to the end of that process, and has its own directory.
//
// A process that is not a container's first joins the running instance. If none runs in a guest, one is started whose
// first process only waits (catatonit), so that the end of one process does not end others, and its background
// processes outlive it. Such an instance ends when its root is to be unmounted and nothing else runs in it, or with the
// container. Without a guest, no process of ours outlives a command: there, an instance starts and ends with the
// process.
//
// The package is large because starting processes and collecting their exits belong together, and the life of
// containers, their instances and their files in /etc depend on these exits. What is independent has its own package:
// crun runs the runtime program, ocispec has the specs.
package procs
