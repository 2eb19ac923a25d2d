package procs

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata/vmm"
)

// TestCgroupStats reads control groups of both versions, whole and with what is missing or no number.
func TestCgroupStats(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  vmm.ContainerStats
	}{
		{"newer", map[string]string{"g/cgroup.procs": "", "g/cpu.stat": "usage_usec 2000000\nuser_usec 5\n",
			"g/memory.current": "4096\n", "g/memory.max": "max\n",
			"g/memory.events": "low 0\noom 9\noom_kill 3\noom_group_kill 4\n",
			"g/pids.current":  "5\n", "g/pids.max": "10\n",
			"g/io.stat": "8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n"},
			vmm.ContainerStats{CPU: 2 * time.Second, Memory: 4096, OOMKills: 3, PIDs: 5, PIDsLimit: 10, Read: 11, Written: 22}},
		{"older", map[string]string{"memory/g/cgroup.procs": "", "cpuacct/g/cpuacct.usage": "3000000000\n",
			"memory/g/memory.usage_in_bytes": "8192\n", "memory/g/memory.limit_in_bytes": "9223372036854771712\n",
			"memory/g/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", "pids/g/pids.current": "2\n",
			"pids/g/pids.max":                         "max\n",
			"blkio/g/blkio.throttle.io_service_bytes": "8:0 Read 7\n8:0 Write 8\n8:0 Sync 0\nTotal 15\n"},
			vmm.ContainerStats{CPU: 3 * time.Second, Memory: 8192, OOMKills: 1, PIDs: 2, Read: 7, Written: 8}},
		{"odd", map[string]string{"g/cgroup.procs": "x\n-1\n0\n4194999\n", "g/cpu.stat": "usage_usec 99999999999999999999\n",
			"g/memory.current": "", "g/io.stat": "rbytes=x wbytes="}, vmm.ContainerStats{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range tt.files {
				path := filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := cgroupStats(root, "/g")
			if d := cmp.Diff(tt.want, got); d != "" || err != nil {
				t.Error(err, d)
			}
		})
	}
	if _, err := cgroupStats(t.TempDir(), "/none"); err == nil {
		t.Error("there is no group, and no error")
	}
	p, ok := describeProcess(os.Getpid())
	if !ok || p.Parent != uint32(os.Getppid()) || p.UID != uint32(os.Getuid()) || p.Command == "" ||
		len(p.Command) > vmm.MaxContainerCommand {
		t.Errorf("this process: %+v, %v", p, ok)
	}
}
