package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// patience is how long a command waits silently for another one that has the same VM locked.
const patience = time.Second

// silence is how long a VM may take to respond before a command gives up.
const silence = time.Minute

// open opens the VM called name and cleans up after killed runs in it. It blocks while another command has the VM open.
// With --dry-run the VM is a copy of the ledger with a machine that only prints.
func (e *env) open(ctx context.Context, cmd *cli.Command, name string) (*uvm.UtilityVM, error) {
	dir, err := e.vmDir(cmd, name)
	if err != nil {
		return nil, err
	}
	if cmd.Bool("dry-run") {
		return e.openDry(ctx, cmd, name, dir)
	}
	e.sweepBefore(ctx, cmd, func(r strata.RunRecord) bool { return r.VM == name && !r.Own })
	return e.reopen(ctx, cmd, name)
}

// reopen is open without the cleanup and without --dry-run.
func (e *env) reopen(ctx context.Context, cmd *cli.Command, name string) (*uvm.UtilityVM, error) {
	dir, err := e.vmDir(cmd, name)
	if err != nil {
		return nil, err
	}
	done := e.waiting(patience, "waiting for another command that works with VM %q (Ctrl-C to give up)", name)
	defer done()
	take := strata.OpenVM
	if name == hostVM {
		take = strata.OpenHost
	}
	o := e.openOptions(cmd)
	o.Locked = done
	vm, err := take(ctx, dir, o)
	if err != nil {
		return nil, e.explain(name, err)
	}
	return vm, nil
}

// openOptions returns the options for opening a VM.
func (e *env) openOptions(cmd *cli.Command) strata.OpenOptions {
	return strata.OpenOptions{Logger: e.logger(cmd), ResponseTimeout: e.silence, RollbackTimeout: e.grace}
}

// explain adds a remedy to the error of a VM that cannot be opened.
func (e *env) explain(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, strata.ErrNoVM):
		return fmt.Errorf("VM %q: %w; start it with: strata vm start %s", name, err, name)
	case errors.Is(err, vmm.ErrGone):
		return fmt.Errorf("VM %q does not run any more: %w; start it again with: strata vm start %s", name, err, name)
	case errors.Is(err, uvm.ErrNoAnswer), errors.Is(err, vmm.ErrProtocol):
		return fmt.Errorf("VM %q: %w; end it with: strata vm stop --force %s", name, err, name)
	}
	return fmt.Errorf("VM %q: %w", name, err)
}

// close closes a VM, which keeps running.
func (e *env) close(vm *uvm.UtilityVM) {
	if err := vm.Close(); err != nil {
		e.say("strata: closing the VM: %v", err)
	}
}
