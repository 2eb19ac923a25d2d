package store_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/store"
)

// The environment of a child that imports: the store, and the number of the step at which it kills itself.
const (
	childDir  = "STRATA_TEST_STORE"
	childStep = "STRATA_TEST_STEP"
	childGC   = "STRATA_TEST_GC"
)

// TestChild is no test but what the other tests start as another process. It imports, or collects.
func TestChild(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		t.Skip("it runs as a child of other tests only")
	}
	var left int
	if s := os.Getenv(childStep); s != "" {
		if _, err := fmt.Sscan(s, &left); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, dir, store.Options{
		Jobs: 1, // one step after the other
		Step: func(string) {
			if left--; left == 0 {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {} // it may take a moment
			}
		},
		Convert: func(ctx context.Context, o layerdir.Options) (layerdir.Result, error) {
			fmt.Println("CONVERTED")
			return layerdir.Convert(ctx, o)
		},
	})
	if os.Getenv(childGC) != "" {
		if err := s.Remove(t.Context(), "victim"); err != nil {
			t.Fatal(err)
		}
		gc(t, s)
		return
	}
	mustImport(t, s, request(t, "victim", 0, 3))
}

// child starts a process on the store and returns what it printed, and whether it was killed.
func child(t *testing.T, dir string, env ...string) (string, bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChild$", "-test.v")
	cmd.Env = append(append(os.Environ(), childDir+"="+dir), env...)
	out, err := cmd.CombinedOutput()
	st, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if err != nil && !(ok && st.Signaled() && st.Signal() == syscall.SIGKILL) {
		t.Fatalf("child: %v\n%s", err, out)
	}
	return string(out), err != nil
}

// TestKilledAtEveryStep: after kill -9 at any step of an import the store is whole, a collection leaves
// nothing of it but what other images need, and the next attempt works.
func TestKilledAtEveryStep(t *testing.T) {
	killed := 0
	for step := 1; ; step++ {
		dir := filepath.Join(t.TempDir(), "store")
		mustImport(t, open(t, dir, store.Options{}), request(t, "keep", 2, 2)) // shares a layer with the victim
		_, dead := child(t, dir, fmt.Sprintf("%s=%d", childStep, step))
		if !dead {
			break
		}
		killed++
		s := open(t, dir, store.Options{})
		r, err := s.Check(t.Context())
		if err != nil || len(r.Problems) != 0 {
			t.Errorf("step %d: %+v, %v", step, r.Problems, err)
		}
		if list, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(list) != 0 {
			t.Errorf("step %d: left in tmp: %v, %v", step, list, err)
		}
		_, err = s.Find("victim")
		imported := err == nil
		gc(t, s)
		if l, c := objects(t, s); !imported && (l != 2 || c != 2) || imported && (l != 4 || c != 5) {
			t.Errorf("step %d: after the collection %d layers and %d chains (imported: %v)", step, l, c, imported)
		}
		mustImport(t, s, request(t, "victim", 0, 3))
		if r := whole(t, s); r.Layers != 4 || r.Images != 2 {
			t.Errorf("step %d: %d layers of %d images, want 4 of 2", step, r.Layers, r.Images)
		}
	}
	if killed < 15 {
		t.Errorf("only %d steps were tried", killed)
	}
}

// TestKilledCollecting: the same for a collection of garbage.
func TestKilledCollecting(t *testing.T) {
	killed := 0
	for step := 1; ; step++ {
		dir := filepath.Join(t.TempDir(), "store")
		s := open(t, dir, store.Options{})
		mustImport(t, s, request(t, "keep", 2, 2))
		mustImport(t, s, request(t, "victim", 0, 3))
		if _, dead := child(t, dir, fmt.Sprintf("%s=%d", childStep, step), childGC+"=1"); !dead {
			break
		}
		killed++
		s = open(t, dir, store.Options{})
		gc(t, s)
		if l, c := objects(t, s); l != 2 || c != 2 {
			t.Errorf("step %d: %d layers and %d chains, want 2 and 2", step, l, c)
		}
		whole(t, s)
	}
	if killed < 5 {
		t.Errorf("only %d steps were tried", killed)
	}
}

// TestTwoProcesses: both succeed, each layer is converted once.
func TestTwoProcesses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	var conversions atomic.Int32
	done := make(chan struct{})
	for range 2 {
		go func() {
			defer func() { done <- struct{}{} }()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChild$", "-test.v")
			cmd.Env = append(os.Environ(), childDir+"="+dir)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("child: %v\n%s", err, out)
			}
			conversions.Add(int32(strings.Count(string(out), "CONVERTED")))
		}()
	}
	<-done
	<-done
	if conversions.Load() != 3 {
		t.Errorf("%d conversions of 3 layers", conversions.Load())
	}
	if r := whole(t, open(t, dir, store.Options{})); r.Layers != 3 || r.Images != 1 {
		t.Errorf("%d layers of %d images", r.Layers, r.Images)
	}
}
