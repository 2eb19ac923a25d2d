package test

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// many is how many containers a test makes to see whether anything grows.
func many(t *testing.T) int {
	t.Helper()
	text := os.Getenv("STRATA_SOAK_CONTAINERS")
	if text == "" {
		return 12
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 12 {
		t.Fatalf("STRATA_SOAK_CONTAINERS=%q: give a number from 12", text)
	}
	return n
}

// holds counts what a process holds: its descriptors, and its memory in KiB.
func holds(t *testing.T, pid int) (files, memory int) {
	t.Helper()
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(about(pid, "status"), "VmRSS:")
	if _, err := fmt.Sscan(rest, &memory); err != nil {
		t.Fatal(err)
	}
	return len(names), memory
}

// held is what is held for a pod: descriptors of its shim and its VM, processes and mounts of the host, and those of the
// pod.
type held struct {
	shim, vm, processes, mounts int
	pod                         string
}

// TestGrowth makes containers in one pod, one after the other and four at a time. Nothing is held for those that are gone.
func TestGrowth(t *testing.T) {
	k := needKube(t, "strata")
	sandbox, pod := k.runp(t)
	n := many(t)
	stays := k.start(t, sandbox, pod, "stays", "exec sleep 1000000", nil)
	one := func(i int) { // it has the processes of the pod, and leaves one behind
		id := k.start(t, sandbox, pod, fmt.Sprintf("c%d", i), "sleep 1000003 & exec sleep 1000000", nil)
		if out := k.crictl(t, 0, "exec", "--sync", id, "echo", "beside"); out != "beside" {
			t.Errorf("exec in container %d: %q", i, out)
		}
		k.crictl(t, 0, "stop", "--timeout", "0", id)
		k.crictl(t, 0, "rm", id)
	}
	shims, vms := k.shims(t), k.vm(t)
	if len(shims) != 1 || len(vms) != 1 {
		t.Fatalf("the shims are %v, the VMs %v, want one of each", shims, vms)
	}
	memory := 0
	count := func() (h held) {
		h.shim, memory = holds(t, shims[0])
		h.vm, _ = holds(t, vms[0])
		h.processes = len(k.processes(t))
		h.pod = k.crictl(t, 0, "exec", "--sync", stays, "sh", "-c",
			`for word in sleep 1000003; do cat /proc/[0-9]*/cmdline | tr '\0' '\n' | grep -c "^$word\$"; done
			grep -c . /proc/self/mounts`)
		for _, what := range k.left(t) {
			if strings.HasPrefix(what, "mount ") {
				h.mounts++
			}
		}
		return h
	}
	four := func(from int) {
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() { one(from + i) })
		}
		wg.Wait()
	}
	four(0) // what is kept for later is there by now
	one(4)
	first := count()
	if !strings.HasPrefix(first.pod, "1\n0\n") { // the pause container has no sleep
		t.Errorf("the pod has %q, want the sleep of the container that stays, and nothing of those that are gone", first.pod)
	}
	before := memory
	for i := 5; i < n; i += 6 {
		four(i)
		one(i + 4)
		one(i + 5)
	}
	until(t, func() error {
		if now := count(); now.shim > first.shim || now.vm > first.vm || now.processes > first.processes ||
			now.mounts > first.mounts || now.pod != first.pod {
			return fmt.Errorf("after %d containers %+v, after five %+v", n, now, first)
		}
		return nil
	})
	t.Logf("%d containers: %+v; the shim has %d KiB, and had %d after five", n, first, memory, before)
	if most := before + 16<<10; memory > most {
		t.Errorf("the shim has %d KiB, want at most %d", memory, most)
	}
	k.remove(t, sandbox)
}

// TestFourAtATime: VMs of four containers are started and ended at the same time, twice. Nothing is left of them.
func TestFourAtATime(t *testing.T) {
	d := need(t)
	for round := range 2 {
		var wg sync.WaitGroup
		for i, snapshotter := range []string{"overlayfs", "erofs", "overlayfs", "erofs"} {
			wg.Go(func() {
				id, said := fmt.Sprintf("four%d%d", round, i), fmt.Sprintf("said by %d\n", i)
				r := d.ctr(nil, run("--rm", "--snapshotter", snapshotter, image, id, "sh", "-c",
					fmt.Sprintf("echo said by %d; exit %d", i, i+1))...)
				if r.stdout != said || r.code != i+1 {
					t.Errorf("container %d, round %d: exit code %d, %q: %s", i, round, r.code, r.stdout, r.stderr)
				}
				if _, err := os.Lstat(d.socket(id)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the shim's socket is left: %v", err)
				}
			})
		}
		wg.Wait()
		d.clean(t)
	}
}
