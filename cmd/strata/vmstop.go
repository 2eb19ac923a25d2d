package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/vmm"
)

func (e *env) vmStop(ctx context.Context, cmd *cli.Command) error {
	name, dir, err := e.vmArg(cmd)
	if err != nil {
		return err
	}
	if !exists(dir) && name != hostVM {
		return fmt.Errorf("VM %q: %w; strata vm ls shows those there are", name, strata.ErrNoVM)
	}
	if cmd.Bool("dry-run") {
		return e.stopDry(ctx, cmd, name, dir)
	}
	if !exists(dir) { // nothing is mounted on this system, and recover has removed its empty state
		return e.print(cmd, vmView{Name: name}, func(w io.Writer) { fmt.Fprintf(w, "%s: stopped\n", name) })
	}
	// After the VM has ended, only the directories of killed runs are left to clean up.
	defer e.sweepBefore(ctx, cmd, func(r strata.RunRecord) bool { return r.VM == name })
	if cmd.Bool("force") {
		if err := strata.KillVM(ctx, dir); err != nil {
			return e.explain(name, err)
		}
		return e.print(cmd, vmView{Name: name}, func(w io.Writer) { fmt.Fprintf(w, "%s: ended\n", name) })
	}
	if err := e.stopIn(ctx, cmd, name, dir, cmd.Duration("timeout")); err != nil {
		return err
	}
	return e.print(cmd, vmView{Name: name}, func(w io.Writer) { fmt.Fprintf(w, "%s: stopped\n", name) })
}

// stopDry prints what vm stop would do.
func (e *env) stopDry(ctx context.Context, cmd *cli.Command, name, dir string) error {
	v, _, err := e.view(ctx, cmd, name)
	if err != nil {
		return err
	}
	if cmd.Bool("force") {
		return e.would(cmd, "end VM %s%s without unmounting", name, pid(v.PID, " (process %d)"))
	}
	if !v.Running {
		return e.explain(name, vmm.ErrGone)
	}
	vm, err := e.open(ctx, cmd, name)
	if err != nil {
		return err
	}
	defer e.close(vm)
	if err := strata.UnmountForStop(ctx, vm, dir); err != nil {
		return err
	}
	return e.would(cmd, "power VM %s off", name)
}

// stopIn shuts a VM down, and kills it if that takes longer than timeout, also if the VM does not respond or another
// command has it open.
func (e *env) stopIn(ctx context.Context, cmd *cli.Command, name, dir string, timeout time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	vm, err := e.reopen(limited, cmd, name)
	if err != nil && limited.Err() != nil && ctx.Err() == nil && name != hostVM {
		e.say("strata: %v; it is ended the hard way", err)
		return e.explain(name, strata.KillVM(ctx, dir))
	}
	if err != nil {
		return err
	}
	done := e.status("stopping VM %s ...", name)
	defer done()
	if err := strata.StopVM(limited, vm, dir, func(message string) {
		done()
		e.say("strata: %s", message)
	}); err != nil {
		return fmt.Errorf("stop VM %q: %w", name, err)
	}
	return nil
}
