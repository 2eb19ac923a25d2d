package vmmtest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/stratavm/strata/vmm"
)

// Env is a machine to try the contract on, and what can be done with it.
type Env struct {
	Machine vmm.Machine
	// Disk returns Changes that add a device and mount it: another device, address and target for each
	// n from 0 to 7. The devices can be removed again.
	Disk func(n int) vmm.Change
	// Bad adds a device that the guest cannot mount; no device: this is not tried.
	Bad vmm.Change
	// Network returns Changes that give a container a network: another one for each n of 0 and 1; nil: this is not
	// tried.
	Network func(n int) vmm.Change
	// Namespace returns Changes that connect a container to existing network namespaces, as Network; Left is
	// called when none of them is connected and fails the test where something is left in them.
	Namespace func(n int) vmm.Change
	Left      func()
	// Hang stops the machine from answering until resume is called; nil: this is not tried.
	Hang func() (resume func())
	// Recorded: Observe returns records, and so does not wait for a machine that hangs.
	Recorded bool
	// Program is one that runs until a signal ends it, once Disk(0) is mounted; nil Args: this is not tried.
	Program vmm.ProcessSpec
	// Container is one of a driver that says what containers use; nil: this is not tried.
	Container *Container
	// Kill ends the machine behind the back of its driver.
	Kill func()
}

// patience bounds each call of the suite that has to succeed. It is no expectation of speed: without
// it a driver that hangs would say so only when the whole test run times out.
const patience = 60 * time.Second

// Contract checks that a driver keeps the contract of package vmm. newMachine returns a machine without
// devices; it is called once for each part and cleans up after itself.
func Contract(t *testing.T, newMachine func(t *testing.T) Env) {
	for _, part := range []struct {
		name string
		run  func(*testing.T, *suite)
	}{
		{"devices and mounts", comeAndGo}, {"the halves alone", halvesAlone}, {"an address is occupied", occupied},
		{"an ended context", endedContext}, {"a mount that fails", failedMount},
		{"a process is found again", foundAgain}, {"networks", networks},
		{"statistics of a container", statistics},
		{"a container is paused and updated", control},
		{"many addresses at a time", concurrent}, {"a machine that hangs", hangs}, {"a machine that dies", dies},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, &suite{t, newMachine(t)}) })
	}
}

type suite struct {
	*testing.T
	Env
}

func (s *suite) limited() context.Context {
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	s.Cleanup(cancel)
	return ctx
}

func (s *suite) apply(c vmm.Change) {
	s.Helper()
	if err := s.Machine.Apply(s.limited(), c); err != nil {
		s.Fatalf("%s: %v", c, err)
	}
}

// fails applies a Change that has to fail with the outcomes given.
func (s *suite) fails(ctx context.Context, c vmm.Change, host, guest vmm.Outcome, is error) {
	s.Helper()
	err := s.Machine.Apply(ctx, c)
	if err == nil {
		s.Fatalf("%s: succeeded, want an error", c)
	}
	if _, ok := errors.AsType[*vmm.ApplyError](err); !ok {
		s.Errorf("%s: the error is a %T, want a *vmm.ApplyError", c, err)
	}
	if h, g := vmm.Outcomes(c, err); h != host || g != guest {
		s.Errorf("%s: host %s, guest %s, want host %s, guest %s: %v", c, h, g, host, guest, err)
	}
	if is != nil && !errors.Is(err, is) {
		s.Errorf("%s: %v, want one that matches %q", c, err, is)
	}
}

// has checks that the machine holds exactly the halves of these Changes.
func (s *suite) has(want ...vmm.Change) {
	s.Helper()
	obs, err := s.Machine.Observe(s.limited())
	if err != nil {
		s.Fatalf("Observe: %v", err)
	}
	devices, mounts := 0, 0
	for _, c := range want {
		if c.Device != nil {
			if devices++; obs.Device(c.Device.Addr()) == nil {
				s.Errorf("%s is not there: %v", c.Device, obs.Devices)
			}
		}
		if c.Mount != nil {
			if mounts++; obs.Mount(c.Mount) == nil {
				s.Errorf("%s is not there: %v", c.Mount, obs.Mounts)
			}
		}
	}
	if len(obs.Devices) != devices || len(obs.Mounts) != mounts {
		s.Errorf("the machine holds %v and %v, want %d devices and %d mounts", obs.Devices, obs.Mounts, devices, mounts)
	}
}

func comeAndGo(t *testing.T, s *suite) {
	a, b := s.Disk(0), s.Disk(1)
	s.has()
	s.apply(a)
	s.apply(b)
	s.has(a, b)
	s.apply(a) // is there already
	s.has(a, b)
	s.apply(a.Inverse())
	s.has(b)
	s.apply(a.Inverse()) // is not there any more
	s.has(b)
	s.apply(a)
	s.apply(a.Inverse())
	s.apply(b.Inverse())
	s.has()
	if s.Machine.ID() == "" {
		t.Error("the machine has no id")
	}
}

func halvesAlone(_ *testing.T, s *suite) {
	a := s.Disk(0)
	s.apply(a.HostOnly())
	s.has(a.HostOnly())
	s.apply(a) // the host's half is done
	s.has(a)
	s.apply(a.GuestOnly().Inverse())
	s.has(a.HostOnly())
	s.apply(a.Inverse()) // the guest's half is done
	s.has()
}

func occupied(_ *testing.T, s *suite) {
	a, b := s.Disk(0), s.Disk(1)
	s.apply(a)
	other := b
	other.Device = at(b.Device, a.Device)
	if !reflect.DeepEqual(other.Device, a.Device) { // there is nothing to a WritableLayer but its address
		s.fails(s.limited(), other, vmm.NotDone, vmm.NotDone, vmm.ErrOccupied)
	}
	s.has(a)
	s.apply(b.HostOnly())
	other = b.GuestOnly()
	other.Mount = onto(b.Mount, a.Mount.Target())
	s.fails(s.limited(), other, vmm.NotDone, vmm.NotDone, vmm.ErrOccupied)
	s.has(a, b.HostOnly())
	s.apply(b.HostOnly().Inverse())
	s.apply(a.Inverse())
	s.has()
}

// at gives the device d the address of another.
func at(d, address vmm.Device) vmm.Device {
	switch d := d.(type) {
	case vmm.SCSIDisk:
		to := address.(vmm.SCSIDisk)
		d.Controller, d.LUN = to.Controller, to.LUN
		return d
	case vmm.VSMBShare:
		d.Name = address.(vmm.VSMBShare).Name
		return d
	case vmm.VirtioFSShare:
		d.Slot = address.(vmm.VirtioFSShare).Slot
		return d
	case vmm.WritableLayer:
		return address
	}
	return d
}

// onto gives the guest action g the target of another.
func onto(g vmm.Mount, target string) vmm.Mount {
	switch g := g.(type) {
	case vmm.MappedDisk:
		g.MountPath = target
		return g
	case vmm.MappedDirectory:
		g.MountPath = target
		return g
	case vmm.MappedVirtioFS:
		g.MountPath = target
		return g
	case vmm.CombinedLayers:
		g.RootPath = target
		return g
	}
	return g
}

func endedContext(_ *testing.T, s *suite) {
	a := s.Disk(0)
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	s.fails(ctx, a, vmm.NotDone, vmm.NotDone, context.Canceled)
	s.has()
	s.apply(a)
	s.fails(ctx, a.Inverse(), vmm.NotDone, vmm.NotDone, context.Canceled)
	s.has(a)
	s.apply(a.Inverse())
}

func foundAgain(t *testing.T, s *suite) {
	const never = 1 << 30 // no process ever has this number
	if _, err := s.Machine.FindProcess(s.limited(), "", never); !errors.Is(err, vmm.ErrNoProcess) {
		if errors.Is(err, errors.ErrUnsupported) {
			return
		}
		t.Errorf("a process that never was: %v, want an error matching %q", err, vmm.ErrNoProcess)
	}
	if len(s.Program.Args) == 0 {
		t.Skip("this driver's tests have no program")
	}
	s.apply(s.Disk(0))
	p, err := s.Machine.Exec(s.limited(), s.Program)
	if err != nil {
		t.Fatal(err)
	}
	find := func() vmm.Process {
		t.Helper()
		q, err := s.Machine.FindProcess(s.limited(), "", p.Pid())
		if err != nil {
			t.Fatal(err)
		}
		if q.Pid() != p.Pid() {
			t.Errorf("process %d was found as %d", p.Pid(), q.Pid())
		}
		return q
	}
	running := find()
	if _, err := s.Machine.FindProcess(s.limited(), "other", p.Pid()); !errors.Is(err, vmm.ErrNoProcess) {
		t.Errorf("the process in a container that it is not in: %v, want an error matching %q", err, vmm.ErrNoProcess)
	}
	if err := running.Signal(s.limited(), 9); err != nil {
		t.Error(err)
	}
	want, err := p.Wait(s.limited())
	if err != nil {
		t.Fatal(err)
	}
	ended := find()
	for _, q := range []vmm.Process{running, ended} {
		if code, err := q.Wait(s.limited()); code != want || err != nil {
			t.Errorf("the process found again ended with %d, %v; want %d", code, err, want)
		}
	}
	for _, q := range []vmm.Process{p, running, ended} {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	}
	s.apply(s.Disk(0).Inverse())
}

func failedMount(t *testing.T, s *suite) {
	if s.Bad.Empty() {
		t.Skip("this driver's tests have no device that cannot be mounted")
	}
	s.fails(s.limited(), s.Bad, vmm.Done, vmm.NotDone, nil)
	s.has(s.Bad.HostOnly())
	s.apply(s.Bad.Inverse())
	s.has()
}

func concurrent(t *testing.T, s *suite) {
	each := func(do func(vmm.Change) vmm.Change) {
		var wg sync.WaitGroup
		for n := range 8 {
			wg.Go(func() {
				c := do(s.Disk(n))
				if err := s.Machine.Apply(s.limited(), c); err != nil {
					t.Errorf("%s: %v", c, err)
				}
			})
		}
		wg.Wait()
	}
	var all []vmm.Change
	for n := range 8 {
		all = append(all, s.Disk(n))
	}
	each(func(c vmm.Change) vmm.Change { return c })
	s.has(all...)
	each(vmm.Change.Inverse)
	s.has()
}

func hangs(t *testing.T, s *suite) {
	if s.Hang == nil {
		t.Skip("this driver's machine cannot be made to hang")
	}
	a, b := s.Disk(0), s.Disk(1)
	s.apply(a)
	resume := s.Hang()
	within := func(d time.Duration) context.Context {
		ctx, cancel := context.WithTimeout(s.Context(), d)
		s.Cleanup(cancel)
		return ctx
	}
	add := b.HostOnly()
	// Long enough for the call to begin, also on a busy host.
	s.fails(within(time.Second), add, vmm.Unknown, vmm.NotDone, context.DeadlineExceeded)
	// The abandoned call holds its address.
	s.fails(within(100*time.Millisecond), add.Inverse(), vmm.NotDone, vmm.NotDone, context.DeadlineExceeded)
	_, err := s.Machine.Observe(within(100 * time.Millisecond))
	if s.Recorded && err != nil || !s.Recorded && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Observe of a machine that hangs: %v", err)
	}
	resume()
	s.apply(b.Inverse()) // whatever became of it
	s.has(a)
	s.apply(a.Inverse())
}

func dies(t *testing.T, s *suite) {
	a := s.Disk(0)
	s.apply(a)
	if err := s.Machine.Err(); err != nil {
		t.Errorf("Err of a machine that runs: %v", err)
	}
	s.Kill()
	select {
	case <-s.Machine.Done():
	case <-s.limited().Done():
		t.Fatal("Done was not closed")
	}
	for what, err := range map[string]error{
		"Err":    s.Machine.Err(),
		"Add":    s.Machine.Apply(s.limited(), s.Disk(1)),
		"Remove": s.Machine.Apply(s.limited(), a.Inverse()),
		"Delete": s.Machine.DeleteContainerState(s.limited(), "x"),
		"Observe": func() error {
			_, err := s.Machine.Observe(s.limited())
			return err
		}(),
		"Exec": func() error {
			_, err := s.Machine.Exec(s.limited(), vmm.ProcessSpec{Args: []string{"true"}})
			return err
		}(),
	} {
		if !errors.Is(err, vmm.ErrGone) {
			t.Errorf("%s of a dead machine: %v, want one that matches ErrGone", what, err)
		}
	}
	if err := errors.Join(s.Machine.Terminate(s.limited()), s.Machine.Close()); err != nil {
		t.Errorf("ending a dead machine: %v", err)
	}
}

// ContractShare is a Disk of Env for a Linux machine, of folders that folder gives.
func ContractShare(folder func(n int) string) func(n int) vmm.Change {
	return func(n int) vmm.Change {
		return vmm.Change{Op: vmm.Add, Device: vmm.VirtioFSShare{Slot: uint32(n), Path: folder(n)},
			Mount: vmm.MappedVirtioFS{Slot: uint32(n), MountPath: fmt.Sprintf("/run/contract/%d", n)}}
	}
}

// ContractDisk is a Disk of Env for a Linux machine, of files that file gives.
func ContractDisk(file func(n int) string, format vmm.DiskFormat) func(n int) vmm.Change {
	return func(n int) vmm.Change {
		return vmm.Change{Op: vmm.Add,
			Device: vmm.SCSIDisk{Controller: uint8(n % 4), LUN: uint8(n), Path: file(n), Format: format, ReadOnly: true},
			Mount: vmm.MappedDisk{Controller: uint8(n % 4), LUN: uint8(n), ReadOnly: true,
				MountPath: fmt.Sprintf("/run/contract/%d", n)},
		}
	}
}
