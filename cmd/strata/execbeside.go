package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/vmm"
)

// containerOfExec returns the container of strata run that exec names, by name or id; false if it is not one, but may
// be a mount of another command.
func (e *env) containerOfExec(ctx context.Context, cmd *cli.Command, ref string) (*strata.Containers,
	strata.ContainerRecord, bool) {
	runs, err := e.runs(cmd)
	if err != nil || ref == "" {
		return nil, strata.ContainerRecord{}, false
	}
	cs := runs.Containers()
	r, err := cs.Find(ref)
	if err != nil || cmd.IsSet("vm") && r.VM != cmd.String("vm") {
		return nil, r, false
	}
	if r.State != strata.ContainerExited && !mayRun(cs, r) && !cmd.Bool("dry-run") {
		e.buryBefore(ctx, cs)
	}
	return cs, r, true
}

// execBeside runs an exec process in a container, with the environment, working directory and user of its program.
func (e *env) execBeside(ctx context.Context, cmd *cli.Command, cs *strata.Containers, r strata.ContainerRecord,
	spec vmm.ProcessSpec) error {
	if cmd.Bool("dry-run") {
		return e.would(cmd, "run %q in container %s", spec.Args, r.Name)
	}
	if err := needRunning(cs, r); err != nil {
		return err
	}
	spec.Env = spec.Env[1:] // without the default PATH: the container has one
	if cmd.Bool("detach") {
		if err := cs.Control(r.Name).Leave(ctx, spec); err != nil {
			return &exitError{startCode(err), fmt.Errorf("container %s: run %s: %w", r.Name, printable(spec.Args[0]), err)}
		}
		return nil
	}
	err := e.runProgram(ctx, controlRunner{cs.Control(r.Name)}, spec, syscall.SIGTERM)
	if ee, ok := errors.AsType[*exitError](err); ok && ee.err != nil {
		return &exitError{ee.code, containerError(r, ee.err)}
	}
	return err
}

// controlRunner is a runner that starts processes through the supervisor of a container.
type controlRunner struct{ *strata.ContainerControl }

// FindProcess implements vmm.Runner.
func (controlRunner) FindProcess(context.Context, string, uint32) (vmm.Process, error) {
	return nil, fmt.Errorf("find a process: %w", errors.ErrUnsupported)
}

// Close implements vmm.Runner.
func (controlRunner) Close() error { return nil }
