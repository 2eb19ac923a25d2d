// Command strata gives containers in utility VMs their root file systems. Started as PID 1 in a Linux
// guest it is the guest's agent; see package agent.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v3"
)

// version is set by the build.
var version = "devel"

func main() {
	if code, ok := guestMain(); ok {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal ends ctx: what is under way is taken back or left for the next command to
	// mend. From then on signals have their usual effect, so that a second one ends us at once.
	context.AfterFunc(ctx, stop)
	e := &env{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv, silence: silence}
	os.Exit(e.run(ctx, os.Args))
}

// Exit codes. exec and run answer with the program's own code; what goes wrong before the program
// runs is 125, as in other container tools, to tell it from the program's failures.
const (
	exitFailure     = 1
	exitUsage       = 2
	exitNotRun      = 125
	exitInterrupted = 130
)

// exitError carries an exit code. Without an error nothing is printed.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usage is an error of the command line itself.
func usage(cmd *cli.Command, format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf("%w (see %s --help)", fmt.Errorf(format, args...), cmd.FullName())}
}

// run runs one command line, args[0] being the program, and returns the exit code.
func (e *env) run(ctx context.Context, args []string) int {
	head, tail := splitArgs(args)
	e.command = tail
	err := e.root().Run(ctx, head)
	if err == nil {
		return 0
	}
	code, say := exitFailure, true
	if ee, ok := errors.AsType[*exitError](err); ok {
		code, say = ee.code, ee.err != nil
	} else if ctx.Err() != nil {
		code = exitInterrupted
	}
	if say {
		fmt.Fprintln(e.stderr, "strata:", err)
	}
	return code
}

// splitArgs cuts off what follows the first "--": the program of exec and run, with its arguments.
func splitArgs(args []string) (head, tail []string) {
	for i, a := range args {
		if a == "--" {
			return args[:i], args[i+1:]
		}
	}
	return args, nil
}
