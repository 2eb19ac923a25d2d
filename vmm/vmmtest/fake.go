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

	"github.com/stratavm/strata/internal/applyengine"
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
	engine *applyengine.Engine
	life   context.Context
	end    context.CancelCauseFunc

	mu         sync.Mutex
	devices    map[string]vmm.Device
	mounts     map[string]vmm.Mount
	log        []vmm.Change
	violations []string
	script     func(n int, c vmm.Change) Fault // n counts from 1
	holders    map[string]string               // by mount: who keeps it in use
	hang       chan struct{}                   // closed when the machine answers again; nil: it does
	execs      []vmm.ProcessSpec
	forgotten  []string
	containers map[string]*FakeContainer
}

// LinuxLimits are those of a Linux utility VM with everything.
func LinuxLimits() vmm.Limits {
	return vmm.Limits{SCSIControllers: 4, SCSILUNs: 64, VPMEMDevices: 64, VPMEMMaxBytes: 4 << 30,
		Plan9: true, NICs: 4, VirtioFSShares: 4, CompositeDisks: true, EROFS: true, Verity: true, Observes: true}
}

// WindowsLimits are those of a Windows utility VM.
func WindowsLimits() vmm.Limits {
	return vmm.Limits{SCSIControllers: 1, SCSILUNs: 64, VSMB: true, Observes: true,
		ReservedSCSI: []vmm.SCSISlot{{Controller: 0, LUN: 0}}}
}

// New creates a machine.
func New(id string, os vmm.OS, limits vmm.Limits) *Fake {
	f := &Fake{id: id, os: os, limits: limits, devices: map[string]vmm.Device{}, mounts: map[string]vmm.Mount{},
		containers: map[string]*FakeContainer{}}
	f.life, f.end = context.WithCancelCause(context.Background())
	f.engine = applyengine.New(f.life, os, nil, nil)
	return f
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

// Hang stops the machine from answering until resume is called.
func (f *Fake) Hang() (resume func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	hang := make(chan struct{})
	f.hang = hang
	return func() { close(hang) }
}

// answers waits for a machine that hangs.
func (f *Fake) answers(ctx context.Context) error {
	f.mu.Lock()
	hang := f.hang
	f.mu.Unlock()
	if hang == nil {
		return nil
	}
	select {
	case <-hang:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Log returns the Changes asked for since the last Script, whatever became of them.
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
	err := f.engine.Run(ctx, c, func(vmm.Change) (applyengine.Halves, error) { return f.halves(c, fault), nil })
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

// halves are those of a Change that fails as fault says.
func (f *Fake) halves(c vmm.Change, fault Fault) (h applyengine.Halves) {
	hostFirst := c.Op != vmm.Remove
	half := func(first, last bool, do func() error) applyengine.Half {
		return func(ctx context.Context) (vmm.Outcome, error) {
			if err := f.answers(ctx); err != nil {
				return vmm.Unknown, err
			}
			if fault == RefuseFirst && first || fault == RefuseSecond && last {
				return vmm.NotDone, ErrInjected
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			err := f.Err()
			if err == nil {
				err = do()
			}
			if err != nil {
				return vmm.NotDone, err
			}
			return vmm.Done, nil
		}
	}
	h.Host = half(hostFirst || c.Mount == nil, !hostFirst || c.Mount == nil,
		func() error { return f.host(c.Op, c.Device) })
	h.Guest = half(!hostFirst || c.Device == nil, hostFirst || c.Device == nil,
		func() error { return f.guest(c.Op, c.Mount) })
	return h
}

// Observe implements vmm.Machine.
func (f *Fake) Observe(ctx context.Context) (vmm.Observation, error) {
	if err := f.answers(ctx); err != nil {
		return vmm.Observation{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.Err(); err != nil {
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
	if err := f.Err(); err != nil {
		return nil, err
	}
	if spec.ContainerID != "" {
		c := f.containers[spec.ContainerID]
		if c == nil {
			c = &FakeContainer{}
			f.containers[spec.ContainerID] = c
		}
		if c.Paused {
			return nil, fmt.Errorf("container %s: %w", spec.ContainerID, vmm.ErrPaused)
		}
	}
	f.execs = append(f.execs, spec)
	return process(len(f.execs)), nil
}

// FindProcess implements vmm.Machine.
func (f *Fake) FindProcess(_ context.Context, containerID string, pid uint32) (vmm.Process, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.Err(); err != nil {
		return nil, err
	}
	if pid == 0 || int64(pid) > int64(len(f.execs)) || f.execs[pid-1].ContainerID != containerID {
		return nil, fmt.Errorf("%w: process %d", vmm.ErrNoProcess, pid)
	}
	return process(pid), nil
}

// Execs returns the processes asked for.
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
	delete(f.containers, id)
	return f.Err()
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
func (f *Fake) Done() <-chan struct{} { return f.life.Done() }

// Err implements vmm.Machine.
func (f *Fake) Err() error { return context.Cause(f.life) }

// Kill ends the machine: everything in it is gone.
func (f *Fake) Kill() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.end(fmt.Errorf("machine %s: %w", f.id, vmm.ErrGone))
	clear(f.devices)
	clear(f.mounts)
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
