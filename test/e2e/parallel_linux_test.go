package e2e

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"

	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/vmm"
)

// TestParallelRuns mounts, runs a program and unmounts again, by several at the same time in one VM: what
// one of them starts is no reason for the roots, scratches or layers of the others to be in use.
// STRATA_TEST_RUNS says how many runs, all together.
func TestParallelRuns(t *testing.T) {
	const workers = 4
	runs := 32
	if s := os.Getenv("STRATA_TEST_RUNS"); s != "" {
		var err error
		if runs, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	leaktest.Check(t)
	vm, _ := startVM(t)
	top, _ := stack(t, 2)
	run := func(worker, round int, disk string) error {
		r := layers.Request{VM: vm, ID: fmt.Sprintf("run-%d-%d", worker, round), Layers: top, Scratch: disk}
		m, err := layers.Mount(t.Context(), r)
		if err != nil {
			return fmt.Errorf("mount: %w", err)
		}
		p, err := vm.Machine().Exec(t.Context(),
			vmm.ProcessSpec{ContainerID: m.ID, Root: m.Root, Args: []string{"/bin/busybox", "true"}})
		if err != nil {
			return fmt.Errorf("exec: %w", err)
		}
		if code, err := p.Wait(t.Context()); err != nil || code != 0 {
			return fmt.Errorf("exit code %d, %w", code, err)
		}
		if err := m.Release(t.Context()); err != nil {
			return fmt.Errorf("unmount: %w", err)
		}
		return nil
	}
	var wg sync.WaitGroup
	for w := range workers {
		disk := scratch(t)
		wg.Go(func() {
			for i := range runs / workers {
				if err := run(w, i, disk); err != nil {
					t.Errorf("run %d of worker %d: %v", i, w, err)
				}
			}
		})
	}
	wg.Wait()
	empty(t, vm)
}
