package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// dryMachine prints the Changes it is told to make, and makes none. It has in it what the books say.
type dryMachine struct {
	id     string
	os     vmm.OS
	limits vmm.Limits
	obs    vmm.Observation
	w      io.Writer
	json   func(vmm.Change) error // nil: print text
	done   chan struct{}
}

var errDry = errors.New("this is a dry run")

func (d *dryMachine) ID() string         { return d.id }
func (d *dryMachine) OS() vmm.OS         { return d.os }
func (d *dryMachine) Limits() vmm.Limits { return d.limits }

func (d *dryMachine) Apply(_ context.Context, c vmm.Change) error {
	if d.json != nil {
		return d.json(c)
	}
	_, err := fmt.Fprintln(d.w, printable(c.String()))
	return err
}

func (d *dryMachine) Observe(context.Context) (vmm.Observation, error) { return d.obs, nil }

func (d *dryMachine) Exec(context.Context, vmm.ProcessSpec) (vmm.Process, error) {
	return nil, errDry
}
func (d *dryMachine) DeleteContainerState(context.Context, string) error { return nil }
func (d *dryMachine) Stacks(context.Context) (string, error)             { return "", errDry }
func (d *dryMachine) Done() <-chan struct{}                              { return d.done }
func (d *dryMachine) Err() error                                         { return nil }
func (d *dryMachine) Shutdown(context.Context) error                     { return nil }
func (d *dryMachine) Terminate(context.Context) error                    { return nil }
func (d *dryMachine) Close() error                                       { return nil }

// would says in a dry run what a command would do besides Changes of a VM.
func (e *env) would(cmd *cli.Command, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	return e.print(cmd, struct {
		Would string `json:"would"`
	}{text}, func(w io.Writer) { fmt.Fprintln(w, text) })
}

// openDry opens a copy of the books of a VM, with a machine that only prints. Neither the VM nor its
// state directory are touched; a VM that does not exist is taken as an empty one.
func (e *env) openDry(ctx context.Context, cmd *cli.Command, name, dir string) (*uvm.UtilityVM, error) {
	status, err := uvm.ReadStatus(dir)
	if err != nil {
		return nil, err
	}
	os, limits, err := strata.Plan(ctx, dir)
	if err != nil {
		return nil, err
	}
	d := &dryMachine{id: name, os: os, obs: status.Observation(), limits: limits, w: e.stdout, done: make(chan struct{})}
	if cmd.Bool("json") {
		d.json = func(c vmm.Change) error { return e.print(cmd, c, nil) }
	}
	return uvm.DryRun(ctx, dir, d, uvm.Options{Logger: e.logger(cmd)})
}
