package task

import (
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/vmm"
)

// TestExecRefused names in what a process may not differ from the container's first.
func TestExecRefused(t *testing.T) {
	f := running(t)
	mask, adj := uint32(7), 5
	for want, change := range map[string]func(*specs.Process){
		"process.capabilities":    func(p *specs.Process) { p.Capabilities = nil },
		"process.noNewPrivileges": func(p *specs.Process) { p.NoNewPrivileges = true },
		"process.rlimits": func(p *specs.Process) {
			p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}}
		},
		"process.oomScoreAdj":         func(p *specs.Process) { p.OOMScoreAdj = &adj },
		"process.user.umask":          func(p *specs.Process) { p.User.Umask = &mask },
		"process.user.additionalGids": func(p *specs.Process) { p.User.AdditionalGids = []uint32{9} },
		"process.apparmorProfile":     func(p *specs.Process) { p.ApparmorProfile = "x" },
		"process.args":                func(p *specs.Process) { p.Args = nil },
	} {
		if err := f.add("e", change); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q: %v", want, err)
		}
	}
	if err := f.add("", nil); !is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("without an id: %v", err)
	}
}

// TestUnsupported names the call.
func TestUnsupported(t *testing.T) {
	f := running(t)
	for name, call := range map[string]func() error{
		"checkpoint": func() error {
			_, err := f.Checkpoint(t.Context(), &taskapi.CheckpointTaskRequest{ID: "a"})
			return err
		},
	} {
		if err := call(); !is(err, errdefs.ErrNotImplemented) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, call := range map[string]func() error{
		"state": func() error { _, err := f.State(t.Context(), &taskapi.StateRequest{ID: "b"}); return err },
		"start": func() error { _, err := f.Start(t.Context(), &taskapi.StartRequest{ID: "a", ExecID: "x"}); return err },
		"wait":  func() error { _, err := f.Wait(t.Context(), &taskapi.WaitRequest{ID: "b"}); return err },
		"kill":  func() error { _, err := f.Kill(t.Context(), &taskapi.KillRequest{ID: "b"}); return err },
		"stats": func() error { _, err := f.Stats(t.Context(), &taskapi.StatsRequest{ID: "b"}); return err },
		"pause": func() error { _, err := f.Pause(t.Context(), &taskapi.PauseRequest{ID: "b"}); return err },
		"pids":  func() error { _, err := f.Pids(t.Context(), &taskapi.PidsRequest{ID: "b"}); return err },
	} {
		if err := call(); !is(err, errdefs.ErrNotFound) {
			t.Errorf("%s of what is not there: %v", name, err)
		}
	}
}

// TestUse says what a container uses; its processes also when the guest does not answer any more.
func TestUse(t *testing.T) { synctest.Test(t, testUse) }

func testUse(t *testing.T) {
	f := running(t)
	if m := f.use(); m.GetMemory().GetUsage() != 5 || m.GetMemory().GetUsageLimit() != 7 {
		t.Errorf("metrics %v", m)
	}
	for _, silent := range []bool{false, true} {
		f.m.beSilent(silent)
		out, err := f.Pids(t.Context(), &taskapi.PidsRequest{ID: "a"})
		if err != nil {
			t.Fatal(err)
		}
		var pids []uint32
		for _, p := range out.Processes {
			pids = append(pids, p.Pid)
		}
		if !slices.Equal(pids, []uint32{4711, 12, 13}) {
			t.Errorf("processes %v (the guest is silent: %v)", pids, silent)
		}
	}
	if c, err := f.Connect(t.Context(), &taskapi.ConnectRequest{ID: "a"}); err != nil || c.TaskPid != 4711 ||
		int(c.ShimPid) != os.Getpid() {
		t.Errorf("connect: %v, %v", c, err)
	}
	f.exit()
}

// use returns what the container uses.
func (f *fixture) use() *stats.Metrics {
	f.t.Helper()
	s, err := f.Stats(f.t.Context(), &taskapi.StatsRequest{ID: "a"})
	if err != nil {
		f.t.Fatal(err)
	}
	m, err := typeurl.UnmarshalAny(s.Stats)
	if err != nil {
		f.t.Fatal(err)
	}
	return m.(*stats.Metrics)
}

// TestUseAfterEnd checks that Stats of a container that has exited returns its last known usage and whether it was
// OOM-killed, without asking the guest, which has forgotten it.
func TestUseAfterEnd(t *testing.T) {
	f := running(t)
	f.m.stats = &vmm.ContainerStats{CPU: time.Second, Memory: 5, MemoryLimit: 7, PIDs: 2}
	f.use()
	f.m.stats = &vmm.ContainerStats{CPU: time.Hour} // what the guest says of a container that it has forgotten
	p := f.m.program(0)
	p.mu.Lock()
	p.memory = true
	p.mu.Unlock()
	p.output.Add(1)
	p.exit(137, nil)
	if cpu := f.use().GetCPU().GetUsageUsec(); cpu != 1e6 {
		t.Errorf("%d us of processor time while its output is still being read, want 1000000", cpu)
	}
	p.output.Done()
	if _, err := f.Wait(t.Context(), &taskapi.WaitRequest{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	m := f.use()
	if cpu, oom := m.GetCPU().GetUsageUsec(), m.GetMemoryEvents().GetOomKill(); cpu != 1e6 || oom != 1 {
		t.Errorf("%d us of processor time and %d processes without memory, want 1000000 and 1", cpu, oom)
	}
	if memory, pids := m.GetMemory().GetUsage(), m.GetPids().GetCurrent(); memory != 0 || pids != 0 {
		t.Errorf("it still has %d bytes and %d processes", memory, pids)
	}
}
