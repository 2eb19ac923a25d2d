// Package gcs is the host end of the guest compute protocol, the messages it is made of, and the
// ways its bytes travel.
//
// A [Client] is the host's side of one bridge: it negotiates version 4, sends guest requests, starts
// processes whose streams come back on ports of their own, and asks what is mounted. It talks to any
// Linux guest that speaks the protocol. What only our own agent (package gcs/agent) knows is used
// after it was negotiated as the guest-defined capability "StrataAgent".
//
// The guest is taken to be hostile: each length is bounded before anything is read, each call ends
// with its context, and a guest that breaks the protocol costs its own bridge and nothing else. A
// call whose context ends is abandoned alone; the bridge lives on and swallows the late answer.
//
// Bytes travel over vsock (or hvsock) where the host has it, through a [Transport]; elsewhere over any
// byte stream, such as the socket of a virtio-serial port, by way of [Connect], which puts a stream
// multiplexer on it.
package gcs
