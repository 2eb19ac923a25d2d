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

// notifyPassedOn sends to c the signals that are passed on to the program and have no meaning for this command.
func notifyPassedOn(c chan<- os.Signal) (stop func()) {
	signal.Notify(c, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM)
	return func() { signal.Stop(c) }
}
