// Package procs is what a Linux guest runs for its hosts, or this system without a guest: containers, with namespaces
// and a first process of their own, and processes in them or in the system itself.
//
// A [Table] answers the requests about containers and processes. Where the roots of containers are mounted is for
// others to know: it asks for them through [Roots]. After [Table.UseRuntime] crun runs the containers, each an
// instance with a folder of its own, from its first process's start to that process's end.
//
// A process that is not a container's first joins the instance that runs. In a guest, where none does, one begins whose
// first process only waits (catatonit), so that processes beside each other do not end each other, and what one leaves
// in the background outlives it. Such an instance ends when its root is to be unmounted and nothing else runs in it, or
// with the container. Without a guest, where nobody would outlive the commands, it begins and ends with the process.
//
// The package is large because a process is followed from its request to its exit code under one table: who starts
// programs also collects their ends, and a container's life, its instances and its files of /etc hang on these ends.
// What could stand alone does: crun as a program is package crun, documents are package ocispec.
package procs
