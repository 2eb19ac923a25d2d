// Command strata gives containers in utility VMs their root file systems. Started as PID 1 in a Linux
// guest it is the guest's agent; see package internal/guest/guestmain.
//
// It is one package, large as it is, of one file a command: flags, output and the opening of a VM are
// the same for all of them, and packages would have to export these to each other and to nobody else.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata/internal/plaintext"
)

// version is set by the build.
var version = "devel"

func main() {
	if code, ok := guestMain(); ok {
		os.Exit(code)
	}
	i := &interrupts{}
	ctx := i.watch(context.Background())
	e := &env{stdin: os.Stdin, stdout: output{os.Stdout, i}, stderr: output{os.Stderr, i},
		getenv: os.Getenv, lookupEnv: os.LookupEnv, silence: silence, grace: grace, interrupts: i}
	os.Exit(e.run(ctx, os.Args))
}

// Exit codes. exec and run answer with the program's own code, 128+n when signal n ended it; what goes wrong before
// the program runs is 125, 126 or 127, as in other container tools, to tell it from the program's failures. A command
// that signal n interrupts answers with 128+n too.
const (
	exitFailure       = 1
	exitUsage         = 2
	exitNotRun        = 125
	exitNotExecutable = 126
	exitNoProgram     = 127
	exitInterrupted   = 130
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
	if len(args) > 1 && args[1] == completeCommand {
		e.complete(ctx, args[2:])
		return 0
	}
	head, tail := splitArgs(args)
	e.command, e.dashes = tail, len(head) < len(args)
	head = withoutGroup(head)
	e.json = slices.ContainsFunc(head, func(a string) bool { return a == "--json" || a == "-json" || a == "--json=true" })
	if e.interrupts == nil { // in a test
		e.interrupts = &interrupts{}
	}
	err := e.root().Run(ctx, head)
	if err == nil {
		return 0
	}
	code, say := exitFailure, true
	if ee, ok := errors.AsType[*exitError](err); ok {
		code, say = ee.code, ee.err != nil
	}
	if ctx.Err() != nil && (code == exitFailure || code == exitNotRun) {
		code = exitInterrupted
		if i, ok := errors.AsType[*interruption](context.Cause(ctx)); ok {
			code = i.exitCode()
			say = say && i.sig != syscall.SIGPIPE // as a program that the signal ends
		}
	}
	if say {
		e.fail(err, code)
	}
	return code
}

// failure is what is written to standard error of a command that failed, with --json.
type failure struct {
	Error    string `json:"error"`
	ExitCode int    `json:"exitCode"`
}

// fail says why a command failed.
func (e *env) fail(err error, code int) {
	if e.json {
		e.stderrJSON(failure{err.Error(), code})
		return
	}
	fmt.Fprintln(e.stderr, "strata:", plaintext.Text(err.Error()))
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
