// Package crun runs containers by an OCI runtime program, crun or runc. A [Runtime] is the program, a [Bundle] a
// container in its own directory, which also contains the runtime's state, so that any process that finds it can end
// the container.
//
// Containers are started detached: the program exits once the container runs, whose first process then becomes a child
// of the calling process if that is a subreaper or PID 1. A [Starter] starts programs and reaps them.
//
// go-runc is not used: it reaps every child of the process, has no state directory per container, and cannot hide a
// part of the cgroups from crun.
package crun
