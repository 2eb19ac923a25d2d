// Package crun runs containers by crun, or runc, as a program: whatever happens between a container's document and its
// processes is theirs. A [Runtime] is such a program, and a [Bundle] one container in a folder of its own, in which
// also the runtime keeps its state, so that whoever finds the folder can end the container.
//
// The program is started detached: it ends once the container runs, whose first process then is a child of the process
// that called it, should that be a subreaper, or PID 1. Who starts programs and collects their ends is a [Starter].
//
// go-runc is not used: it collects every child of the process by itself, knows no folder of state for each container,
// and has no way to hide a part of the cgroups from crun.
package crun
