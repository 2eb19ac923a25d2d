package vmmtest

import (
	"errors"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/vmm"
)

// control: a container that runs can be paused, let go on and given other limits; one that is paused can be ended.
func control(t *testing.T, s *suite) {
	runner, remove := s.containers(t)
	id := s.Container.Program.ContainerID
	is := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want one that matches %v", what, err, want)
		}
	}
	limits := func(memory int64) specs.LinuxResources {
		pids := int64(77)
		return specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &memory}, Pids: &specs.LinuxPids{Limit: &pids}}
	}
	const memory = 64 << 20
	for name, err := range map[string]error{
		"paused":  runner.PauseContainer(s.limited(), id),
		"resumed": runner.ResumeContainer(s.limited(), id),
		"updated": runner.UpdateContainer(s.limited(), id, limits(memory)),
	} {
		if err == nil {
			t.Errorf("a container that does not run was %s", name)
		}
	}
	begin := func() vmm.Process {
		t.Helper()
		p, err := s.Machine.Exec(s.limited(), s.Container.Program)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	ended := func(p vmm.Process) {
		t.Helper()
		if code, err := p.Wait(s.limited()); code != 137 || err != nil {
			t.Errorf("exit code %d, %v", code, err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	p := begin()
	is("not paused", runner.ResumeContainer(s.limited(), id), vmm.ErrNotPaused)
	is("pause", runner.PauseContainer(s.limited(), id), nil)
	is("pause again", runner.PauseContainer(s.limited(), id), vmm.ErrPaused)
	used, err := runner.ContainerStats(s.limited(), id)
	if err != nil || !used.Paused || used.PIDs != 1 || len(used.Processes) != 1 {
		t.Errorf("one that is paused: %+v, %v", used, err)
	}
	beside := s.Container.Program
	beside.First = false
	_, err = s.Machine.Exec(s.limited(), beside)
	is("a program in one that is paused", err, vmm.ErrPaused)
	is("update of one that is paused", runner.UpdateContainer(s.limited(), id, limits(memory)), nil)
	is("resume", runner.ResumeContainer(s.limited(), id), nil)
	if used, err = runner.ContainerStats(s.limited(), id); err != nil || used.Paused || used.MemoryLimit != memory ||
		used.PIDsLimit != 77 {
		t.Errorf("one with other limits: %+v, %v", used, err)
	}
	if err := runner.UpdateContainer(s.limited(), id, limits(1)); err == nil {
		t.Error("a limit of one byte")
	}
	if err := runner.UpdateContainer(s.limited(), "other", limits(memory)); err == nil {
		t.Error("a container that there is not was updated")
	}
	is("pause", runner.PauseContainer(s.limited(), id), nil)
	is("kill", p.Signal(s.limited(), 9), nil)
	ended(p)
	p = begin()
	is("pause", runner.PauseContainer(s.limited(), id), nil)
	is("delete one that is paused", s.Machine.DeleteContainerState(s.limited(), id), nil)
	ended(p)
	remove()
}
