package local_test

import (
	"io"
	"testing"

	"github.com/stratavm/strata/vmm"
)

// TestContainerStats: what a container uses that runs, its processes, and also what a program joined that failed to be
// executed leaves nothing of: the container ends when its first process is killed.
func TestContainerStats(t *testing.T) {
	m := hostileRoot(t)
	if _, err := m.ContainerStats(t.Context(), "c"); err == nil {
		t.Error("statistics of a container that does not run")
	}
	p, err := m.Exec(t.Context(), vmm.ProcessSpec{ContainerID: "c", Root: "/run/c/rootfs", First: true,
		Args: shell("echo up; exec /bin/busybox sleep 1000"), Stdout: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	s, err := m.ContainerStats(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	if s.Memory == 0 || s.PIDs == 0 || len(s.Processes) != 1 || s.Processes[0].PID < 2 {
		t.Errorf("%+v", s)
	}
	for range 3 {
		if _, err := m.Exec(t.Context(), vmm.ProcessSpec{ContainerID: "c", Root: "/run/c/rootfs",
			Args: []string{"/none"}}); err == nil {
			t.Error("a program that is not there runs")
		}
	}
	if err := p.Signal(t.Context(), 9); err != nil {
		t.Error(err)
	}
	if code, err := p.Wait(t.Context()); code != 137 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
	if err := p.Signal(t.Context(), 9); err != nil {
		t.Errorf("a signal to what has ended: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := m.ContainerStats(t.Context(), "c"); err == nil {
		t.Error("statistics of a container that has ended")
	}
}
