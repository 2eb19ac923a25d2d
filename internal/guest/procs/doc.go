// Package procs is what a Linux guest runs for its hosts: containers, with namespaces and a first process of their
// own, and processes in them or in the guest itself.
//
// A [Table] answers the requests about containers and processes. Where the roots of containers are mounted is for
// others to know: it asks for them through [Roots]. After [Table.UseRuntime] crun runs the containers, each an
// instance with a folder of its own; without it this program does: [Stage] is to be called first thing by any program
// that contains this package, because the program is started again to be the first process of each container.
package procs
