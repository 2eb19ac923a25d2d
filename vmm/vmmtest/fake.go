// Package vmmtest holds a machine that exists in memory only and fails as it is told, and the
// contract suite that every driver of package vmm passes.
package vmmtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/stratavm/strata/vmm"
)

// Fault is a way in which a Change fails.
type Fault uint8

// The faults there are.
const (
	NoFault      Fault = iota
	RefuseFirst        // the half that comes first is refused: nothing happens
	RefuseSecond       // the half that comes second is refused after the first took effect
	AfterEffect        // everything takes effect, and an error is returned all the same
	HangBefore         // nothing happens until ctx ends
	HangAfter          // everything takes effect, but the call does not return until ctx ends
	MachineGone        // the machine dies under the call
	numFaults
)

// Faults are all the ways to fail.
func Faults() []Fault {
	var out []Fault
	for f := RefuseFirst; f < numFaults; f++ {
		out = append(out, f)
	}
	return out
}

func (f Fault) String() string {
	return [...]string{"none", "refused", "second half refused", "error after effect",
		"hang", "hang after effect", "machine gone"}[f]
}

// ErrInjected is the cause of every scripted failure.
var ErrInjected = errors.New("injected fault")

// Fake is a machine in memory. It keeps the rules of the contract and of the world: nothing is
// mounted without its device, combined without its layers, or detached under a mount. What breaks a
// rule of the world is refused and noted in Violations.
type Fake struct {
	id     string
	os     vmm.OS
	limits vmm.Limits

	mu         sync.Mutex
	devices    map[string]vmm.Device
	mounts     map[string]vmm.Mount
	log        []vmm.Change
	violations []string
	script     func(n int, c vmm.Change) Fault // n counts from 1
	holders    map[string]string               // by mount: who keeps it in use
	done       chan struct{}
	execs      []vmm.ProcessSpec
	forgotten  []string
}

// LinuxLimits are those of a Linux utility VM with everything.
func LinuxLimits() vmm.Limits {
	return vmm.Limits{SCSIControllers: 4, SCSILUNs: 64, VPMEMDevices: 64, VPMEMMaxBytes: 4 << 30,
		Plan9: true, CompositeDisks: true, EROFS: true, Verity: true, Observes: true}
}

// WindowsLimits are those of a Windows utility VM.
func WindowsLimits() vmm.Limits {
	return vmm.Limits{SCSIControllers: 1, SCSILUNs: 64, VSMB: true, Observes: true,
		ReservedSCSI: []vmm.SCSISlot{{Controller: 0, LUN: 0}}}
}

// New makes a machine.
func New(id string, os vmm.OS, limits vmm.Limits) *Fake {
	return &Fake{id: id, os: os, limits: limits, devices: map[string]vmm.Device{},
		mounts: map[string]vmm.Mount{}, done: make(chan struct{})}
}

// Script makes fail decide the fault of every later Change; n counts the calls of Apply from 1. The
// count starts anew. A nil fail lets everything succeed.
func (f *Fake) Script(fail func(n int, c vmm.Change) Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.script, f.log = fail, nil
}

// FailNth makes the n-th Change from now on fail, counted from 1.
func (f *Fake) FailNth(n int, fault Fault) {
	f.Script(func(i int, _ vmm.Change) Fault {
		if i == n {
			return fault
		}
		return NoFault
	})
}

// Hold makes a guest mount be in use by a holder of the given name, until the name is empty.
func (f *Fake) Hold(target, holder string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.holders == nil {
		f.holders = map[string]string{}
	}
	f.holders[target] = holder
}

// Log gives the Changes asked for since the last Script, whatever became of them.
func (f *Fake) Log() []vmm.Change {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.log)
}

// Violations tells where the caller broke a rule of the world.
func (f *Fake) Violations() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.violations)
}

// Leftovers names every device and mount there is.
func (f *Fake) Leftovers() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, d := range f.devices {
		out = append(out, d.String())
	}
	for _, g := range f.mounts {
		out = append(out, g.String())
	}
	slices.Sort(out)
	return out
}

// ID implements vmm.Machine.
func (f *Fake) ID() string { return f.id }

// OS implements vmm.Machine.
func (f *Fake) OS() vmm.OS { return f.os }

// Limits implements vmm.Machine.
func (f *Fake) Limits() vmm.Limits { return f.limits }

// Apply implements vmm.Machine.
func (f *Fake) Apply(ctx context.Context, c vmm.Change) error {
	f.mu.Lock()
	f.log = append(f.log, c)
	fault := NoFault
	if f.script != nil {
		fault = f.script(len(f.log), c)
	}
	f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return &vmm.ApplyError{Change: c, Err: err}
	}
	switch fault {
	case HangBefore:
		<-ctx.Done()
		return unknown(c, context.Cause(ctx))
	case MachineGone:
		f.Kill()
	}
	err := f.effect(c, fault == RefuseFirst, fault == RefuseSecond)
	if err != nil {
		return err
	}
	switch fault {
	case AfterEffect:
		return unknown(c, ErrInjected)
	case HangAfter:
		<-ctx.Done()
		return unknown(c, context.Cause(ctx))
	}
	return nil
}

func unknown(c vmm.Change, cause error) error {
	e := &vmm.ApplyError{Change: c, Err: cause}
	if c.Device != nil {
		e.Host = vmm.Unknown
	}
	if c.Mount != nil {
		e.Guest = vmm.Unknown
	}
	return e
}

// half is one side of a change: what it does, and where its outcome is noted.
type half struct {
	do      func() error
	outcome *vmm.Outcome
}

func (f *Fake) effect(c vmm.Change, refuseFirst, refuseSecond bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := &vmm.ApplyError{Change: c}
	select {
	case <-f.done:
		e.Err = f.goneError()
		return e
	default:
	}
	var halves []half
	if c.Device != nil {
		halves = append(halves, half{func() error { return f.host(c.Op, c.Device) }, &e.Host})
	}
	if c.Mount != nil {
		halves = append(halves, half{func() error { return f.guest(c.Op, c.Mount) }, &e.Guest})
	}
	if c.Op == vmm.Remove {
		slices.Reverse(halves)
	}
	for i, h := range halves {
		if refuseFirst && i == 0 || refuseSecond && i == len(halves)-1 {
			e.Err = ErrInjected
			return e
		}
		if err := h.do(); err != nil {
			e.Err = err
			return e
		}
		*h.outcome = vmm.Done
	}
	return nil
}

// Observe implements vmm.Machine.
func (f *Fake) Observe(ctx context.Context) (vmm.Observation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.goneError(); err != nil {
		return vmm.Observation{}, err
	}
	return vmm.Observation{
		Devices: slices.Collect(maps.Values(f.devices)),
		Mounts:  slices.Collect(maps.Values(f.mounts)),
	}, ctx.Err()
}

// Exec implements vmm.Machine: the process is recorded and exits at once with code 0.
func (f *Fake) Exec(_ context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.goneError(); err != nil {
		return nil, err
	}
	f.execs = append(f.execs, spec)
	return process(len(f.execs)), nil
}

// Execs gives the processes asked for.
func (f *Fake) Execs() []vmm.ProcessSpec {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.execs)
}

// DeleteContainerState implements vmm.Machine.
func (f *Fake) DeleteContainerState(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forgotten = append(f.forgotten, id)
	return f.goneError()
}

// Forgotten lists the containers that DeleteContainerState was called for.
func (f *Fake) Forgotten() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.forgotten)
}

// Stacks implements vmm.Machine.
func (f *Fake) Stacks(context.Context) (string, error) { return "goroutine 1 [running]:\n", f.Err() }

// Done implements vmm.Machine.
func (f *Fake) Done() <-chan struct{} { return f.done }

// Err implements vmm.Machine.
func (f *Fake) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.goneError()
}

func (f *Fake) goneError() error {
	select {
	case <-f.done:
		return fmt.Errorf("machine %s: %w", f.id, vmm.ErrGone)
	default:
		return nil
	}
}

// Kill ends the machine: everything in it is gone.
func (f *Fake) Kill() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.goneError() == nil {
		close(f.done)
		clear(f.devices)
		clear(f.mounts)
	}
}

// Shutdown implements vmm.Machine.
func (f *Fake) Shutdown(context.Context) error { f.Kill(); return nil }

// Terminate implements vmm.Machine.
func (f *Fake) Terminate(context.Context) error { f.Kill(); return nil }

// Close implements vmm.Machine.
func (f *Fake) Close() error { return nil }

type process uint32

func (p process) Pid() uint32                                  { return uint32(p) }
func (p process) Wait(context.Context) (int, error)            { return 0, nil }
func (p process) Signal(context.Context, int) error            { return nil }
func (p process) Resize(context.Context, uint16, uint16) error { return nil }
func (p process) Close() error                                 { return nil }
