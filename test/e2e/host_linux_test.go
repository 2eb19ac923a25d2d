package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/vmm"
)

// TestHost mounts layers on this system itself: many with whiteouts, written to, found again by
// another handle, and taken away without a trace.
func TestHost(t *testing.T) {
	treetest.NeedRoot(t, "to mount")
	for _, n := range []int{1, 3, 40} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			leaktest.Check(t)
			dir := filepath.Join(t.TempDir(), "host")
			o := strata.OpenOptions{}
			vm, err := strata.OpenHost(t.Context(), dir, o)
			if err != nil {
				t.Fatal(err)
			}
			top, want := stack(t, n)
			scratch := t.TempDir()
			m := mount(t, layers.Request{VM: vm, ID: "a", Layers: top, Scratch: scratch})
			root := strata.HostPath(vm, m.Root)
			if err := os.WriteFile(filepath.Join(root, "data", "mine"), []byte("1"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := vm.Close(); err != nil {
				t.Fatal(err)
			}
			if vm, err = strata.OpenHost(t.Context(), dir, o); err != nil {
				t.Fatal(err)
			}
			if m, err = layers.Open(vm, "a"); err != nil {
				t.Fatal(err)
			}
			want["mine"] = "1"
			got := map[string]string{}
			entries, err := os.ReadDir(filepath.Join(root, "data"))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				b, err := os.ReadFile(filepath.Join(root, "data", e.Name()))
				if err != nil {
					t.Fatal(err)
				}
				got[e.Name()] = strings.TrimSpace(string(b))
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
			release(t, m)
			empty(t, vm)
			if _, err := os.Stat(filepath.Join(scratch, "scratch", "a", "upper", "data", "mine")); err != nil {
				t.Errorf("what the container wrote is not in its scratch: %v", err)
			}
			if err := vm.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestHostRuns runs a program in a root on this system.
func TestHostRuns(t *testing.T) {
	treetest.NeedRoot(t, "to mount")
	leaktest.Check(t)
	// this program carries the agent and is found
	vm, err := strata.OpenHost(t.Context(), filepath.Join(t.TempDir(), "host"), strata.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	top, _ := stack(t, 2)
	m := mount(t, layers.Request{VM: vm, ID: "a", Layers: top, Scratch: t.TempDir()})
	var out bytes.Buffer
	code, err := m.Run(t.Context(), vmm.ProcessSpec{
		Args: []string{"/bin/busybox", "sh", "-c", "echo $$; exit 7"}, Env: []string{"PATH=/bin"}, Stdout: &out})
	if err != nil || code != 7 {
		t.Errorf("exit code %d, %v", code, err)
	}
	if err := m.EndPrograms(t.Context()); err != nil {
		t.Error(err)
	}
	release(t, m)
	empty(t, vm)
}
