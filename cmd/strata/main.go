// Command strata runs containers in utility VMs and manages their root file systems. As PID 1 of a Linux guest it is
// the guest's agent; see package internal/guest/guestmain.
//
// It is one package with about one file per command: all share flags, output and the opening of a VM, which separate
// packages would have to export to each other.
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

// Exit codes. exec and run exit with the program's code, or 128+n if signal n killed it. If the program could not be
// started, the code is 125, 126 or 127, as in other container tools. A command that signal n interrupts exits with
// 128+n.
const (
	exitFailure       = 1
	exitUsage         = 2
	exitNotRun        = 125
	exitNotExecutable = 126
	exitNoProgram     = 127
	exitInterrupted   = 130
)

// exitError is an error with an exit code. If it wraps no error, nothing is printed.
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

// usage returns a usage error.
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
			say = say && i.sig != syscall.SIGPIPE // silent, like a program killed by SIGPIPE
		}
	}
	if say {
		e.fail(err, code)
	}
	return code
}

// failure is the error of a failed command on standard error with --json.
type failure struct {
	Error    string `json:"error"`
	ExitCode int    `json:"exitCode"`
}

// fail prints the error of a command.
func (e *env) fail(err error, code int) {
	if e.json {
		e.stderrJSON(failure{err.Error(), code})
		return
	}
	fmt.Fprintln(e.stderr, "strata:", plaintext.Text(err.Error()))
}

// splitArgs splits the command line at the first "--"; tail is the program of exec and run with its arguments.
func splitArgs(args []string) (head, tail []string) {
	for i, a := range args {
		if a == "--" {
			return args[:i], args[i+1:]
		}
	}
	return args, nil
}
