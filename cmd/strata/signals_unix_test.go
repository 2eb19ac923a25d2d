//go:build unix

package main

import (
	"context"
	"io"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stratavm/strata/vmm"
)

// TestSignalsArePassedOn: signals that mean something to a program go to it, also those that come before its start is
// over, and end neither it nor the command.
func TestSignalsArePassedOn(t *testing.T) {
	send := func(sig syscall.Signal) {
		if err := syscall.Kill(os.Getpid(), sig); err != nil {
			t.Error(err)
		}
	}
	p := &guestProcess{ends: []syscall.Signal{syscall.SIGUSR2}, over: make(chan struct{})}
	p.starting = func() { send(syscall.SIGUSR1) }
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		for ctx.Err() == nil && !slices.Contains(p.signals(), syscall.SIGUSR1) {
			time.Sleep(time.Millisecond)
		}
		send(syscall.SIGALRM)
		for ctx.Err() == nil && !slices.Contains(p.signals(), syscall.SIGALRM) {
			time.Sleep(time.Millisecond)
		}
		send(syscall.SIGUSR2)
	}()
	e := &env{stderr: io.Discard, grace: time.Second, interrupts: &interrupts{}}
	code, err := e.process(ctx, p, vmm.ProcessSpec{Args: []string{"x"}}, syscall.SIGTERM)
	want := []syscall.Signal{syscall.SIGUSR1, syscall.SIGALRM, syscall.SIGUSR2}
	if got := p.signals(); err != nil || code != 42 || !slices.Equal(got, want) {
		t.Errorf("code %d, %v; the program got %v, want %v", code, err, got, want)
	}
}
