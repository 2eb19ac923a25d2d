//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// notifyResize sends to c when the terminal changes its size.
func notifyResize(c chan<- os.Signal) (stop func()) {
	signal.Notify(c, syscall.SIGWINCH)
	return func() { signal.Stop(c) }
}

// notifyPassedOn sends signals to c that mean something to a program, and nothing to the command that runs it.
func notifyPassedOn(c chan<- os.Signal) (stop func()) {
	signal.Notify(c, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM)
	return func() { signal.Stop(c) }
}
