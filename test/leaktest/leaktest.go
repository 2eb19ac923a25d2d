// Package leaktest is the ledger of a test: it notes what the process and the host hold when the test
// begins, and fails the test, naming each thing, when more is there after everything else was cleaned
// up. It looks at goroutines everywhere, and on Linux at open files and child processes, and below the
// test's temporary folders at mounts, loop devices, and whatever program works there (such as a
// detached QEMU). Other tests may run on the same host at the same time.
package leaktest

import (
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// settle is how long something may still be on its way out when the test ends. It bounds the wait for
// what has leaked; a test without a leak does not wait.
const settle = 5 * time.Second

// probe lists one kind of thing. The keys name the things; equal ones are counted.
type probe struct {
	kind string
	list func() (map[string]int, error)
}

// Check notes what is there now and compares when the test's later cleanups have run: call it first.
// The test's own folders (t.TempDir) are looked at in any case; files below dirs must be gone too. It
// cannot be used in tests that run in parallel with others of their process, which share its
// goroutines and files.
func Check(t testing.TB, dirs ...string) {
	t.Helper()
	check(t, settle, append([]probe{
		{"goroutine", goroutines},
		{"file", func() (map[string]int, error) { return files(dirs) }},
	}, hostProbes(append([]string{filepath.Dir(t.TempDir())}, dirs...))...))
}

func check(t testing.TB, settle time.Duration, probes []probe) {
	t.Helper()
	before := make([]map[string]int, len(probes))
	for i, p := range probes {
		var err error
		if before[i], err = p.list(); err != nil {
			t.Fatalf("ledger: listing each %s: %v", p.kind, err)
		}
	}
	t.Cleanup(func() {
		t.Helper()
		for deadline := time.Now().Add(settle); ; time.Sleep(10 * time.Millisecond) {
			left, err := remains(probes, before)
			if err == nil && len(left) == 0 {
				return
			}
			if time.Now().Before(deadline) {
				continue
			}
			if err != nil {
				t.Errorf("ledger: %v", err)
			}
			for _, l := range left {
				t.Errorf("ledger: left behind: %s", l)
			}
			return
		}
	})
}

func remains(probes []probe, before []map[string]int) ([]string, error) {
	var left []string
	for i, p := range probes {
		now, err := p.list()
		if err != nil {
			return nil, fmt.Errorf("listing each %s: %w", p.kind, err)
		}
		for _, name := range slices.Sorted(maps.Keys(now)) {
			if n := now[name] - before[i][name]; n > 1 {
				left = append(left, fmt.Sprintf("%d × %s %s", n, p.kind, name))
			} else if n == 1 {
				left = append(left, p.kind+" "+name)
			}
		}
	}
	return left, nil
}

// goroutines lists goroutines by number and stack. Those of the runtime and of package testing are
// not counted.
func goroutines() (map[string]int, error) {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	out := map[string]int{}
	for i, g := range strings.Split(string(buf), "\n\n") {
		if i == 0 || ignored(g) { // the first is ourselves
			continue
		}
		// The state in the first line changes ("[select]", "[select, 2 minutes]"), as does the depth
		// of the stack; the place of creation does not.
		head, stack, _ := strings.Cut(g, "\n")
		number, _, _ := strings.Cut(head, " [")
		created := stack
		if i := strings.LastIndex(stack, "created by "); i >= 0 {
			created = stack[i:]
		}
		out[number+" "+strings.Join(strings.Fields(created), " ")]++
	}
	return out, nil
}

func ignored(stack string) bool {
	for _, s := range []string{
		"testing.(*T).Run(", "testing.RunTests(", "testing.(*M).", "testing.runFuzzing(", "testing.(*F).Fuzz",
		"created by testing.(*T).Run", "os/signal.signal_recv(", "os/signal.loop(", "runtime.ensureSigM(",
		"runtime.ReadTrace(", "created by runtime", "created by context.(*cancelCtx).propagateCancel",
	} {
		if strings.Contains(stack, s) {
			return true
		}
	}
	return false
}

func files(dirs []string) (map[string]int, error) {
	out := map[string]int{}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if path != dir {
				out[path]++
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}
