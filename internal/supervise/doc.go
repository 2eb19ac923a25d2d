// Package supervise implements the supervisor process of a running container and its clients: a bounded, rotated log of
// the program's output, and a control socket in the container's directory.
//
// A request and its response are a line of JSON each. After the responses to attach and exec, the connection carries
// frames in both directions: the program's streams, terminal size, signals, exit. Only the directory's owner can
// connect; messages are bounded nevertheless, and a client that hangs or dies blocks neither the program nor other
// clients.
package supervise
