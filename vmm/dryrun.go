package vmm

import (
	"context"
	"errors"
	"fmt"
)

// ErrDryRun is matched by errors of calls that a dry run cannot do, such as running a program.
var ErrDryRun = errors.New("this is a dry run")

// DryRun describes a machine that applies no changes.
type DryRun struct {
	ID          string
	OS          OS
	Limits      Limits
	Observation Observation // what Observe returns; Changes do not alter it
	// Report, if not nil, is called with each Change that would be applied; concurrently, if Apply is. If it fails,
	// Apply does.
	Report func(Change) error
}

// NewDryRun returns a Machine that applies no changes: Apply reports them and succeeds, Observe returns d.Observation,
// and programs cannot be run.
func NewDryRun(d DryRun) Machine { return &dryMachine{d: d, done: make(chan struct{})} }

type dryMachine struct {
	d    DryRun
	done chan struct{} // never closed: the machine does not end
}

func (m *dryMachine) ID() string     { return m.d.ID }
func (m *dryMachine) OS() OS         { return m.d.OS }
func (m *dryMachine) Limits() Limits { return m.d.Limits }

func (m *dryMachine) Apply(ctx context.Context, c Change) error {
	err := context.Cause(ctx)
	if err == nil && m.d.Report != nil {
		err = m.d.Report(c)
	}
	if err != nil {
		return &ApplyError{Change: c, Err: err}
	}
	return nil
}

func (m *dryMachine) Observe(ctx context.Context) (Observation, error) {
	return m.d.Observation, context.Cause(ctx)
}

func (m *dryMachine) Exec(_ context.Context, spec ProcessSpec) (Process, error) {
	return nil, fmt.Errorf("start %q in %s: %w", spec.Args, m.d.ID, ErrDryRun)
}

func (m *dryMachine) FindProcess(_ context.Context, _ string, pid uint32) (Process, error) {
	return nil, fmt.Errorf("find process %d in %s: %w", pid, m.d.ID, ErrDryRun)
}

func (m *dryMachine) Stacks(context.Context) (string, error) {
	return "", fmt.Errorf("stacks of the agent of %s: %w", m.d.ID, ErrDryRun)
}

func (m *dryMachine) DeleteContainerState(context.Context, string) error { return nil }
func (m *dryMachine) Done() <-chan struct{}                              { return m.done }
func (m *dryMachine) Err() error                                         { return nil }
func (m *dryMachine) Shutdown(context.Context) error                     { return nil }
func (m *dryMachine) Terminate(context.Context) error                    { return nil }
func (m *dryMachine) Close() error                                       { return nil }
