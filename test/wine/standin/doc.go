// Package standin stands in for the libraries of Windows that Wine lacks: C libraries that pass each
// call on, and the program that answers them from a Host Compute Service in memory.
//
// The libraries ([BuildDLLs]) find the program by the port in the environment variable [EnvPort]. One
// call is one connection; the messages are described in c/wire.c. Registrations for notifications,
// streams of processes and open disks keep their connection, so that what a program leaves open is
// closed with it. A test that runs as a Windows program steers the stand-in through a [Client].
package standin
