package task

import (
	"context"
	"slices"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/typeurl/v2"

	"github.com/stratavm/strata/vmm"
)

// pidsTimeout is the guest's time to list a container's processes: containerd gives the shim five seconds.
const pidsTimeout = 2 * time.Second

// Pids returns the host PID of the VM's process, followed by the guest PIDs of the container's processes. If the guest
// does not answer, the latter are those of the last successful query.
func (s *Service) Pids(ctx context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return Answer[*taskapi.PidsResponse](nil, err)
	}
	out := &taskapi.PidsResponse{Processes: []*task.ProcessInfo{{Pid: uint32(c.machine.PID())}}}
	for _, pid := range c.guestPIDs(ctx) {
		out.Processes = append(out.Processes, &task.ProcessInfo{Pid: pid})
	}
	return out, nil
}

func (c *container) guestPIDs(ctx context.Context) []uint32 {
	switch s, _, _ := c.init.status(); s {
	case task.Status_CREATED, task.Status_STOPPED:
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, pidsTimeout)
	defer cancel()
	st, err := c.machine.Stats(limited, c.id)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.log.Warn("the processes of a container", "container", c.id, "error", err)
		return slices.Clone(c.pids)
	}
	c.pids = nil
	for _, p := range st.Processes[:min(len(st.Processes), vmm.MaxContainerProcesses)] {
		c.pids = append(c.pids, p.PID)
	}
	return slices.Clone(c.pids)
}

// Stats returns a container's resource usage as cgroup v2 metrics. For a container that has exited these are those of
// the last query, without memory and processes: CRI asks for them after the exit to learn whether it was OOM-killed.
func (s *Service) Stats(ctx context.Context, r *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	return Answer(s.stats(ctx, r.ID))
}

func (s *Service) stats(ctx context.Context, id string) (*taskapi.StatsResponse, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, err
	}
	st, err := c.stats(ctx)
	if err != nil {
		return nil, err
	}
	data, err := typeurl.MarshalAnyToProto(metrics(st))
	if err != nil {
		return nil, err
	}
	return &taskapi.StatsResponse{Stats: data}, nil
}

func (c *container) stats(ctx context.Context) (vmm.ContainerStats, error) {
	limited, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var st vmm.ContainerStats
	var err error
	exited := c.init.hasExited()
	if !exited {
		st, err = c.machine.Stats(limited, c.id)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && !exited {
		c.used = st
		c.used.Processes = nil
	}
	if c.init.hasExited() { // it may have exited meanwhile
		st = c.used
		st.Memory, st.PIDs, st.OOMKills = 0, 0, max(st.OOMKills, c.ooms)
		return st, nil
	}
	return st, err
}

func metrics(st vmm.ContainerStats) *stats.Metrics {
	return &stats.Metrics{
		CPU:          &stats.CPUStat{UsageUsec: uint64(max(0, st.CPU.Microseconds()))},
		Memory:       &stats.MemoryStat{Usage: st.Memory, UsageLimit: st.MemoryLimit},
		MemoryEvents: &stats.MemoryEvents{OomKill: st.OOMKills},
		Pids:         &stats.PidsStat{Current: st.PIDs, Limit: st.PIDsLimit},
		Io:           &stats.IOStat{Usage: []*stats.IOEntry{{Rbytes: st.Read, Wbytes: st.Written}}},
	}
}
