package vmmtest

import (
	"strings"
	"testing"

	"github.com/stratavm/strata/vmm"
)

// Container is a container to try the contract on.
type Container struct {
	Root    []vmm.Change    // make its root
	Program vmm.ProcessSpec // its first one, which runs until a signal ends it
	// Runner says what containers use, and changes them; nil: the machine does. What it opens it closes at the end of
	// the test.
	Runner func(t *testing.T) ContainerRunner
}

// ContainerRunner is what knows and changes containers that run.
type ContainerRunner interface {
	vmm.ContainerStatist
	vmm.ContainerController
}

// containers makes the root of the container, and returns what knows it and what removes the root.
func (s *suite) containers(t *testing.T) (r ContainerRunner, remove func()) {
	if s.Container == nil {
		t.Skip("this driver's tests have no container, or it has no statistics")
	}
	for _, change := range s.Container.Root {
		s.apply(change)
	}
	r, ok := s.Machine.(ContainerRunner)
	if s.Container.Runner != nil {
		r, ok = s.Container.Runner(t), true
	}
	if !ok {
		t.Fatalf("%T neither knows nor changes containers", s.Machine)
	}
	return r, func() {
		for i := len(s.Container.Root) - 1; i >= 0; i-- {
			s.apply(s.Container.Root[i].Inverse())
		}
		s.has()
	}
}

// statistics: what a container uses is known while it runs, and an error at any other time.
func statistics(t *testing.T, s *suite) {
	statist, remove := s.containers(t)
	c := s.Container
	id := c.Program.ContainerID
	none := func(id, when string) {
		t.Helper()
		if got, err := statist.ContainerStats(s.limited(), id); err == nil {
			t.Errorf("statistics of a container %s: %+v", when, got)
		}
	}
	none(id, "that does not run yet")
	p, err := s.Machine.Exec(s.limited(), c.Program)
	if err != nil {
		t.Fatal(err)
	}
	none("other", "that there is not")
	var last vmm.ContainerStats
	for range 2 {
		got, err := statist.ContainerStats(s.limited(), id)
		if err != nil {
			t.Fatal(err)
		}
		if got.Memory == 0 || got.PIDs != 1 || got.OOMKills != 0 || got.CPU < last.CPU || got.Read < last.Read {
			t.Errorf("a container with one program uses %+v, before %+v", got, last)
		}
		if want := strings.Join(c.Program.Args, " "); len(got.Processes) != 1 || got.Processes[0].Command != want {
			t.Errorf("its processes are %+v, want %q", got.Processes, want)
		}
		last = got
	}
	if err := p.Signal(s.limited(), 9); err != nil {
		t.Error(err)
	}
	if code, err := p.Wait(s.limited()); code != 137 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	none(id, "that has ended")
	if err := s.Machine.DeleteContainerState(s.limited(), id); err != nil {
		t.Error(err)
	}
	remove()
}
