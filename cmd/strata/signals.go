package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// interruption is why the context of a command ends: a signal, or output that nobody reads any more.
type interruption struct{ sig syscall.Signal }

func (i *interruption) Error() string { return fmt.Sprintf("interrupted (%s)", signalNames[i.sig]) }

// Unwrap makes an interruption match context.Canceled.
func (i *interruption) Unwrap() error { return context.Canceled }

var signalNames = map[syscall.Signal]string{
	syscall.SIGINT: "SIGINT", syscall.SIGTERM: "SIGTERM", syscall.SIGHUP: "SIGHUP", syscall.SIGQUIT: "SIGQUIT",
	syscall.SIGPIPE: "SIGPIPE: nobody reads the output any more",
}

// exitCode is that of a process which the signal of an interruption ended.
func (i *interruption) exitCode() int { return 128 + int(i.sig) }

// interrupts ends the context of a command when the process is told to end: what is under way is taken back, or left
// for the next command to mend. A second signal ends the process at once.
type interrupts struct {
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	quit    func() // passes SIGQUIT on to a program, once
	restore func() // puts the terminal in order
}

// watch returns a context that ends with the first signal.
func (i *interrupts) watch(ctx context.Context) context.Context {
	ctx, i.cancel = context.WithCancelCause(ctx)
	// SIGPIPE is caught so that a write that fails returns an error, see output.
	caught := []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGPIPE}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup wants it
		caught = append(caught, syscall.SIGHUP)
	}
	c := make(chan os.Signal, 8)
	signal.Notify(c, caught...)
	go func() {
		for s := range c {
			if sig, ok := s.(syscall.Signal); ok && i.got(ctx, sig) {
				i.tidyTerminal()
				os.Exit((&interruption{sig}).exitCode())
			}
		}
	}()
	return ctx
}

// got handles a signal, and reports whether the process is to end at once.
func (i *interrupts) got(ctx context.Context, sig syscall.Signal) (now bool) {
	if sig == syscall.SIGPIPE {
		return false
	}
	if sig == syscall.SIGQUIT {
		i.mu.Lock()
		pass := i.quit
		i.quit = nil
		i.mu.Unlock()
		if pass != nil {
			pass()
			return false
		}
	}
	if ctx.Err() == nil {
		i.cancel(&interruption{sig})
		return false
	}
	// A terminal that goes away sends SIGHUP more than once: that is no impatience.
	return sig != syscall.SIGHUP
}

// passQuit has the next SIGQUIT call f instead of ending the command, until stop is called.
func (i *interrupts) passQuit(f func()) (stop func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.quit = f
	return func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.quit = nil
	}
}

// onExit has restore called before a second signal ends the process, until stop is called.
func (i *interrupts) onExit(restore func()) (stop func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.restore = restore
	return func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.restore = nil
	}
}

func (i *interrupts) tidyTerminal() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.restore != nil {
		i.restore()
	}
}

// output is standard output or error. When its reader has gone, the command ends as by a signal: nobody would
// see what it does, and a program in a VM would run on unseen.
type output struct {
	f *os.File
	i *interrupts
}

// Fd returns the descriptor, for questions about a terminal.
func (o output) Fd() uintptr { return o.f.Fd() }

func (o output) Write(b []byte) (int, error) {
	n, err := o.f.Write(b)
	if readerGone(err) {
		o.i.cancel(&interruption{syscall.SIGPIPE})
	}
	return n, err
}

// readerGone reports whether a write failed because the other end of a pipe is closed.
func readerGone(err error) bool {
	const windowsNoData = syscall.Errno(232) // ERROR_NO_DATA
	return errors.Is(err, syscall.EPIPE) || onWindows && errors.Is(err, windowsNoData)
}
