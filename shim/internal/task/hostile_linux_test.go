package task

import (
	"context"
	"fmt"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"

	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/vmm"
)

// TestLyingExits: an exit code that no process has is the highest that one has, and each process is told to have used up
// its memory once at most.
func TestLyingExits(t *testing.T) {
	leaktest.Check(t)
	f := running(t)
	codes := map[int]uint32{-1: 255, 256: 255, math.MaxInt32: 255, math.MinInt32: 255, 0: 0, 255: 255}
	n := 0
	for code, want := range codes {
		n++
		id := fmt.Sprint("e", n)
		if err := f.add(id, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Start(t.Context(), &taskapi.StartRequest{ID: "a", ExecID: id}); err != nil {
			t.Fatal(err)
		}
		p := f.m.program(n)
		p.mu.Lock()
		p.memory = true
		p.mu.Unlock()
		for range 3 {
			p.exit(code, nil)
		}
		if w, err := f.Wait(t.Context(), &taskapi.WaitRequest{ID: "a", ExecID: id}); err != nil || w.ExitStatus != want {
			t.Errorf("code %d: %v, %v, want %d", code, w, err, want)
		}
		if d, err := f.Delete(t.Context(), &taskapi.DeleteRequest{ID: "a", ExecID: id}); err != nil || d.ExitStatus != want {
			t.Errorf("code %d: deleted: %v, %v, want %d", code, d, err, want)
		}
	}
	f.exit()
	told := 0
	for _, e := range f.published() {
		if e == "out of memory" {
			told++
		}
	}
	if told != n {
		t.Errorf("%d processes are told to have used up their memory, want %d", told, n)
	}
}

// TestLyingStats: numbers that cannot be, and a list of processes without an end, keep nobody and stay bounded.
func TestLyingStats(t *testing.T) {
	f := running(t)
	f.m.stats = &vmm.ContainerStats{CPU: -time.Hour, Memory: math.MaxUint64, MemoryLimit: 1, PIDs: math.MaxUint64,
		OOMKills: math.MaxUint64, Processes: make([]vmm.ContainerProcess, 1<<20)}
	s, err := f.Stats(t.Context(), &taskapi.StatsRequest{ID: "a"})
	if err != nil {
		t.Fatal(err)
	}
	m, err := typeurl.UnmarshalAny(s.Stats)
	if err != nil {
		t.Fatal(err)
	}
	if m := m.(*stats.Metrics); m.GetCPU().GetUsageUsec() != 0 || m.GetMemory().GetUsage() != math.MaxUint64 {
		t.Errorf("metrics %v", m)
	}
	for range 3 {
		out, err := f.Pids(t.Context(), &taskapi.PidsRequest{ID: "a"})
		if err != nil || len(out.Processes) != 1+vmm.MaxContainerProcesses || out.Processes[0].Pid != 4711 {
			t.Errorf("%d processes, %v, want the VM's and %d", len(out.GetProcesses()), err, vmm.MaxContainerProcesses)
		}
		if size := proto.Size(out); size > 64<<10 {
			t.Errorf("the answer has %d bytes", size)
		}
	}
	f.exit()
}

// TestStuckUnmount: a guest that does not let go of a root keeps the deletion of its container for a bounded time. Alone in
// its VM the container is gone then; beside others it stays, and they do.
func TestStuckUnmount(t *testing.T) {
	t.Run("alone", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := running(t)
			f.exit()
			defer f.m.fake.Hang()()
			begun := time.Now()
			if _, err := f.Delete(t.Context(), &taskapi.DeleteRequest{ID: "a"}); err != nil || f.m.ends != 1 {
				t.Errorf("delete: %v; the VM has ended %d times", err, f.m.ends)
			}
			if took := time.Since(begun); took > unmountTimeout+answerTimeout {
				t.Errorf("it took %v", took)
			}
		})
	})
	t.Run("in a pod", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := runningPod(t)
			f.m.program(1).exit(0, nil)
			if _, err := f.Wait(t.Context(), &taskapi.WaitRequest{ID: "b"}); err != nil {
				t.Error(err)
			}
			resume := f.m.fake.Hang()
			begun := time.Now()
			if _, err := f.Delete(t.Context(), &taskapi.DeleteRequest{ID: "b"}); err == nil || f.m.ends != 0 {
				t.Errorf("delete: %v; the VM has ended %d times", err, f.m.ends)
			}
			if took := time.Since(begun); took > unmountTimeout+answerTimeout {
				t.Errorf("it took %v", took)
			}
			resume()
			if _, err := f.Delete(t.Context(), &taskapi.DeleteRequest{ID: "b"}); err != nil {
				t.Errorf("delete when the guest answers again: %v", err)
			}
			f.exit()
			if _, err := f.Delete(t.Context(), &taskapi.DeleteRequest{ID: "a"}); err != nil || f.m.ends != 1 {
				t.Errorf("delete of the sandbox: %v; the VM has ended %d times", err, f.m.ends)
			}
		})
	})
}

// TestSilentEnd: the end of a shim whose guests do not answer takes no longer than it is given, and the VM is ended.
func TestSilentEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := runningPod(t)
		f.m.beSilent(true)
		defer f.m.fake.Hang()()
		limited, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		begun := time.Now()
		_ = f.Close(limited) // it says what was not unmounted
		if took := time.Since(begun); took > 3*time.Second || f.m.ends == 0 {
			t.Errorf("it took %v, and the VM has ended %d times", took, f.m.ends)
		}
		for _, id := range []string{"a", "b"} {
			if w, err := f.Wait(t.Context(), &taskapi.WaitRequest{ID: id}); err != nil || int(w.ExitStatus) != killed {
				t.Errorf("%s: %v, %v", id, w, err)
			}
		}
		if got := f.published(); !slices.Contains(got, any([3]any{"exit", "a", uint32(killed)})) {
			t.Errorf("events %v, want the exit of the sandbox", got)
		}
	})
}
