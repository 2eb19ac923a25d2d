package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// patience is how long a command waits for another one that works with the same VM before it says so.
const patience = time.Second

// silence is how long a VM may say nothing before a command gives up.
const silence = time.Minute

// open takes up the VM called name, waiting for another command that works with it, and takes away what
// runs that were killed left in it. With --dry-run it is a copy of the books, with a machine that only
// prints.
func (e *env) open(ctx context.Context, cmd *cli.Command, name string) (*uvm.UtilityVM, error) {
	dir, err := e.vmDir(cmd, name)
	if err != nil {
		return nil, err
	}
	if cmd.Bool("dry-run") {
		return e.openDry(ctx, cmd, dir)
	}
	e.sweepBefore(ctx, cmd, func(r runRecord) bool { return r.VM == name && !r.Own })
	return e.takeUp(ctx, cmd, name)
}

// takeUp is open without what runs left, and never dry.
func (e *env) takeUp(ctx context.Context, cmd *cli.Command, name string) (*uvm.UtilityVM, error) {
	dir, err := e.vmDir(cmd, name)
	if err != nil {
		return nil, err
	}
	waiting := time.AfterFunc(patience, func() {
		e.say("strata: waiting for another command that works with VM %q (Ctrl-C to give up)", name)
	})
	defer waiting.Stop()
	take := strata.OpenVM
	if name == hostVM {
		take = strata.OpenHost
	}
	o := e.openOptions(cmd)
	o.Locked = func() { waiting.Stop() }
	vm, err := take(ctx, dir, o)
	if err != nil {
		return nil, e.explain(name, err)
	}
	return vm, nil
}

// openOptions are those of a VM that is opened.
func (e *env) openOptions(cmd *cli.Command) strata.OpenOptions {
	return strata.OpenOptions{Logger: e.logger(cmd), ResponseTimeout: e.silence}
}

// explain says what to do about a VM that cannot be opened.
func (e *env) explain(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, strata.ErrNoVM):
		return fmt.Errorf("VM %q: %w; start it with: strata vm start %s", name, err, name)
	case errors.Is(err, vmm.ErrGone):
		return fmt.Errorf("VM %q does not run any more: %w; start it again with: strata vm start %s", name, err, name)
	case errors.Is(err, uvm.ErrNoAnswer):
		return fmt.Errorf("VM %q: %w; end it with: strata vm stop --force %s", name, err, name)
	}
	return fmt.Errorf("VM %q: %w", name, err)
}

// close lets go of a VM, which runs on.
func (e *env) close(vm *uvm.UtilityVM) {
	if err := vm.Close(); err != nil {
		e.say("strata: closing the VM: %v", err)
	}
}

// stop releases what is mounted in a VM, powers it off (the hard way from the deadline on) and removes its
// state. When the releasing fails the VM is stopped all the same, as what could not be released goes with it.
func (e *env) stop(ctx context.Context, vm *uvm.UtilityVM, dir string, deadline time.Time) error {
	limited, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	var errs []error
	for _, c := range vm.Claims() {
		m, err := layers.Open(vm, c.ID())
		if err == nil {
			err = m.EndPrograms(limited)
		}
		if err == nil {
			err = m.Release(limited)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		e.say("strata: not everything could be unmounted before the VM stops: %v", err)
	}
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), vm.Close())
	}
	// Shutdown ends the VM the hard way when its context ends, so that it takes the rest of the time.
	if err := vm.Shutdown(limited); err != nil {
		return err
	}
	return strata.RemoveVM(ctx, dir)
}
