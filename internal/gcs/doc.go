// Package gcs is the host's side of the guest compute protocol: messages, client and transports.
//
// A [Client] is the host's end of one bridge: it negotiates version 4, sends guest requests, starts processes, whose
// streams the guest connects to ports of the host, and queries mounts. It works with any Linux guest that speaks the
// protocol. Extensions of our own agent (package internal/guest) are used if the guest has the capability
// "StrataAgent".
//
// The guest is considered hostile: lengths are bounded before anything is read, each call returns when its context
// ends, and a protocol violation closes the guest's own bridge and nothing else. A call whose context ends is
// abandoned; the bridge lives on and discards the late response.
//
// Microsoft's guests dial ports of the host over hvsock, through a [Transport]. Our agent uses a byte stream, over
// which [Connect] runs a stream multiplexer: a vsock connection ([DialVSock]) if the host has vsock, else the socket of
// a virtio-serial port.
//
// It is one package because the client's handshake determines both the messages and the transport, and nothing else
// uses parts of it.
package gcs
