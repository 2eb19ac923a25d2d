// Package gcs is the host end of the guest compute protocol, the messages it is made of, and the
// ways its bytes travel.
//
// A [Client] is the host's side of one bridge: it negotiates version 4, sends guest requests, starts
// processes whose streams come back on ports of their own, and asks what is mounted. It talks to any
// Linux guest that speaks the protocol. What only our own agent (package internal/guest) knows is used
// after it was negotiated as the guest-defined capability "StrataAgent".
//
// The guest is taken to be hostile: each length is bounded before anything is read, each call ends
// with its context, and a guest that breaks the protocol costs its own bridge and nothing else. A
// call whose context ends is abandoned alone; the bridge lives on and swallows the late answer.
//
// Microsoft's guests dial the ports of their host over hvsock, through a [Transport]. Our own agent takes
// a byte stream, to which [Connect] puts a stream multiplexer: a vsock connection ([DialVSock]) where the
// host has vsock, else the socket of a virtio-serial port.
//
// Messages, client and transports are one package, large as it is: which messages there are and which way bytes
// travel is settled by the client's handshake, and no other host end exists that could use a part of it.
package gcs
