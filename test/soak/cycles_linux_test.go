package soak

import (
	"encoding/json"
	"fmt"
	"path"
	"testing"
	"time"
)

// holdings counts what the guest holds, and is run there by the busybox of a root that is mounted: the first argument.
// Processes are counted without those of the kernel, which come and go.
const holdings = `b=$1; echo "$($b ls /proc/1/fd | $b wc -l) files of the agent, $($b wc -l </proc/self/mountinfo) mounts, ` +
	`$($b find /sys/fs/cgroup -type d | $b wc -l) control groups, ` +
	`$($b find /proc -maxdepth 2 -name exe -exec $b readlink {} \; 2>/dev/null | $b grep -c .) processes, ` +
	`$($b find /run -xdev | $b wc -l) files in /run, $($b ls /sys/block | $b grep -c -v loop) disks"`

// TestCycles makes, starts, stops, starts again and removes containers in one VM. It holds no more after many than
// after the first ones.
func TestCycles(t *testing.T) {
	b := newBox(t)
	b.must("vm", "start")
	b.must("mount", "probe", b.layer)
	var list []struct {
		Root string `json:"root"`
	}
	if err := json.Unmarshal([]byte(b.must("--json", "ls")), &list); err != nil || len(list) != 1 || list[0].Root == "" {
		t.Fatalf("what is mounted: %+v, %v", list, err)
	}
	busybox := path.Join(list[0].Root, "bin/busybox")
	held := func() string { return b.must("exec", "--in-vm", "--", busybox, "sh", "-c", holdings, "sh", busybox) }
	cycle := func(i int) {
		name := fmt.Sprintf("c%d", i)
		b.must("run", "-d", "--vm", "default", "--name", name, b.layer, "--", "/bin/sleep", "1000")
		b.must("exec", name, "/bin/true")
		b.must("stop", "-t", "0", name)
		b.must("start", name)
		b.must("rm", "-f", name)
		b.expect(0, "x", "run", "--vm", "default", b.layer, "--", "/bin/echo", "x")
	}
	cycle(0)
	cycle(1) // what is kept for later is there by now
	// What is left of the last one goes after its end is told.
	settled := func() string {
		last := held()
		for range 50 {
			time.Sleep(200 * time.Millisecond)
			now := held()
			if now == last {
				break
			}
			last = now
		}
		return last
	}
	first := settled()
	n := 2
	for until := time.Now().Add(howLong(t, 30*time.Second)); time.Now().Before(until) && n < 100; n++ {
		cycle(n)
	}
	if got := settled(); got != first {
		t.Errorf("after %d containers the guest holds %s, after two %s", n, got, first)
	}
	t.Logf("%d containers: %s", n, first)
	b.must("unmount", "probe")
	b.empty("default")
}
