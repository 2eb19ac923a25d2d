// Package supervise is what the one process does that stands behind a running container, and how other processes talk
// to it: a log of the program's output, which is bounded and rotated, and a control socket in the container's folder.
//
// Over the socket a request is a line of JSON and so is its answer. After the answers to attach and exec the
// connection carries frames both ways: the streams of the program, the size of its terminal, signals, its end. Only
// the folder's owner reaches the socket; what comes over it is bounded all the same, and a client that hangs or dies
// holds up neither the program nor other clients.
package supervise
