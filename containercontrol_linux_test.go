package strata_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// runner is a machine in memory that programs run in.
type runner struct{ *vmmtest.Fake }

// TestContainerControl: what is done to a container is in its record at once, and what the kernel says counts more
// than the record.
func TestContainerControl(t *testing.T) {
	runs := &strata.Runs{Dir: filepath.Join(t.TempDir(), "state")}
	cs := runs.Containers()
	c, err := cs.Begin(t.Context(), strata.ContainerRecord{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	m := runner{vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())}
	old := int64(128 << 20)
	spec := vmm.ProcessSpec{ContainerID: "web", Root: "/run/web", First: true, Args: []string{"web"}, Spec: &specs.Spec{
		Linux: &specs.Linux{Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: &old}}}}}
	p, err := m.Exec(t.Context(), spec)
	if err == nil {
		err = c.Started("vm", p, spec, m)
	}
	if err != nil {
		t.Fatal(err)
	}
	record := func(want strata.ContainerState) (r strata.ContainerRecord) {
		t.Helper()
		r, err := cs.Find("web")
		if err != nil || r.Status() != want {
			t.Errorf("it is %s, want %s: %v", r.Status(), want, err)
		}
		return r
	}
	control := cs.Control("web")
	if err := control.Pause(t.Context()); err != nil {
		t.Error(err)
	}
	record(strata.ContainerPaused)
	// Behind the supervisor's back.
	if err := m.ResumeContainer(t.Context(), "web"); err != nil {
		t.Error(err)
	}
	if err := control.Resume(t.Context()); !errors.Is(err, vmm.ErrNotPaused) {
		t.Errorf("resumed what goes on: %v", err)
	}
	record(strata.ContainerRunning)
	if err := m.PauseContainer(t.Context(), "web"); err != nil {
		t.Error(err)
	}
	if err := control.Pause(t.Context()); !errors.Is(err, vmm.ErrPaused) {
		t.Errorf("paused what is paused: %v", err)
	}
	record(strata.ContainerPaused)
	limit, quota := int64(64<<20), int64(50000)
	if err := control.Update(t.Context(), specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit},
		CPU: &specs.LinuxCPU{Quota: &quota}}); err != nil {
		t.Error(err)
	}
	r := record(strata.ContainerPaused).Process.Spec.Linux.Resources
	if *r.Memory.Limit != limit || *r.Memory.Swap != old || *r.CPU.Quota != quota || r.Pids != nil {
		t.Errorf("limits %+v, %+v", r.Memory, r.CPU)
	}
	more := int64(256 << 20) // with the swap of before the container would not start again
	err = control.Update(t.Context(), specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &more}})
	if err == nil || !strings.Contains(err.Error(), "memory.swap") {
		t.Errorf("updated to limits that contradict each other: %v", err)
	}
	if r := record(strata.ContainerPaused).Process.Spec.Linux.Resources; *r.Memory.Limit != limit {
		t.Errorf("limits %+v", r.Memory)
	}
	c.Ended()
	if err := control.Update(t.Context(), specs.LinuxResources{}); !errors.Is(err, strata.ErrContainerStopped) {
		t.Errorf("updated what has ended: %v", err)
	}
	if err := c.Finish(7, ""); err != nil {
		t.Error(err)
	}
	if r := record(strata.ContainerExited); r.Paused {
		t.Error("it has ended, and is paused")
	}
}

// slow is a runner whose pause is not over before somebody has resumed the container, or cannot.
type slow struct {
	runner
	paused, resumed chan struct{}
}

func (s slow) PauseContainer(ctx context.Context, id string) error {
	err := s.runner.PauseContainer(ctx, id)
	close(s.paused)
	select {
	case <-s.resumed:
	case <-time.After(200 * time.Millisecond):
	}
	return err
}

// TestContainerControlOrder: the record says what was done last.
func TestContainerControlOrder(t *testing.T) {
	runs := &strata.Runs{Dir: filepath.Join(t.TempDir(), "state")}
	cs := runs.Containers()
	c, err := cs.Begin(t.Context(), strata.ContainerRecord{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	m := slow{runner{vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())}, make(chan struct{}), make(chan struct{})}
	spec := vmm.ProcessSpec{ContainerID: "web", Root: "/run/web", First: true, Args: []string{"web"}}
	p, err := m.Exec(t.Context(), spec)
	if err == nil {
		err = c.Started("vm", p, spec, m)
	}
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cs.Control("web").Pause(t.Context()) }()
	<-m.paused
	if err := cs.Control("web").Resume(t.Context()); err != nil {
		t.Error(err)
	}
	close(m.resumed)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if r, err := cs.Find("web"); err != nil || r.Status() != strata.ContainerRunning {
		t.Errorf("resumed, and it is said to be %s: %v", r.Status(), err)
	}
	c.Ended()
	if err := c.Finish(0, ""); err != nil {
		t.Error(err)
	}
}
