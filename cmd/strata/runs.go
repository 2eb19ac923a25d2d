package main

import (
	"context"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/uvm"
)

// cleanup bounds the cleanup of one run.
const cleanup = time.Minute

// runs returns the runs of the state directory.
func (e *env) runs(cmd *cli.Command) (*strata.Runs, error) {
	state, err := e.stateDir(cmd)
	if err != nil {
		return nil, err
	}
	return &strata.Runs{
		Dir:     state,
		Open:    func(ctx context.Context, name string) (*uvm.UtilityVM, error) { return e.reopen(ctx, cmd, name) },
		Notice:  func(message string) { e.say("strata: %s", message) },
		Cleanup: cleanup, Grace: e.grace,
	}, nil
}

// sweep cleans up after the killed runs that which accepts, and returns their ids. A dry run only returns the ids.
func (e *env) sweep(ctx context.Context, cmd *cli.Command, which func(strata.RunRecord) bool) ([]string, error) {
	runs, err := e.runs(cmd)
	if err != nil {
		return nil, err
	}
	if cmd.Bool("dry-run") {
		return runs.Abandoned(which)
	}
	return runs.Sweep(ctx, which)
}

// sweepBefore calls sweep before another operation. Errors are only printed.
func (e *env) sweepBefore(ctx context.Context, cmd *cli.Command, which func(strata.RunRecord) bool) {
	ids, err := e.sweep(ctx, cmd, which)
	for _, id := range ids {
		e.say("strata: what the interrupted run %s left is taken away", id)
	}
	if err != nil {
		e.say("strata: %v; to try again: strata recover", err)
	}
}
