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

// interruption is the cause by which a command's context ends: a signal, or SIGPIPE if the reader of its output is
// gone.
type interruption struct{ sig syscall.Signal }

func (i *interruption) Error() string { return fmt.Sprintf("interrupted (%s)", signalNames[i.sig]) }

// Unwrap makes an interruption match context.Canceled.
func (i *interruption) Unwrap() error { return context.Canceled }

var signalNames = map[syscall.Signal]string{
	syscall.SIGINT: "SIGINT", syscall.SIGTERM: "SIGTERM", syscall.SIGHUP: "SIGHUP", syscall.SIGQUIT: "SIGQUIT",
	syscall.SIGPIPE: "SIGPIPE: nobody reads the output any more",
}

// exitCode returns the exit code of a process killed by the signal.
func (i *interruption) exitCode() int { return 128 + int(i.sig) }

// interrupts cancels the context of a command at the first signal, so that the command undoes what it has begun, or
// leaves it to the next command's recovery. A second signal ends the process at once.
type interrupts struct {
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	quit    func() // called at the next SIGQUIT, see passQuit
	restore func() // restores the terminal, see onExit
}

// watch returns a context that ends with the first signal.
func (i *interrupts) watch(ctx context.Context) context.Context {
	ctx, i.cancel = context.WithCancelCause(ctx)
	// SIGPIPE is caught so that a write that fails returns an error, see output.
	caught := []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGPIPE}
	if !signal.Ignored(syscall.SIGHUP) { // ignored by nohup
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

// got handles a signal and reports whether the process must end at once.
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
	// A closed terminal sends SIGHUP more than once, so a second one does not count.
	return sig != syscall.SIGHUP
}

// passQuit makes the next SIGQUIT call f instead of ending the command, until stop is called.
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

// onExit makes a second signal call restore before it ends the process, until stop is called.
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

// output is standard output or error. If its reader is gone, the command is interrupted as by SIGPIPE: otherwise a
// program in a VM would go on with nobody to see its output.
type output struct {
	f *os.File
	i *interrupts
}

// Fd returns the file descriptor, for terminal.
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
