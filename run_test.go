package strata_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// A run mounts a container in a VM of its own, runs a program in it and takes everything away. If the process is
// killed meanwhile, Sweep of a later one does.
func ExampleRuns() {
	ctx := context.Background()
	runs := &strata.Runs{Dir: "/var/lib/strata"}
	// First what earlier runs left that were killed.
	if _, err := runs.Sweep(ctx, func(r strata.RunRecord) bool { return r.Own }); err != nil {
		fmt.Println(err)
	}
	program := func() (code int, err error) {
		run, err := runs.Begin(ctx, "hello")
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, run.End(ctx)) }()
		vm, err := run.StartVM(ctx, strata.VMOptions{})
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, vm.Close()) }()
		m, err := layers.Mount(ctx, layers.Request{VM: vm, ID: run.ID(), Layers: []layers.Layer{{Folder: "/layers/debian"}}})
		if err != nil {
			return 0, err
		}
		return m.Run(ctx, vmm.ProcessSpec{Args: []string{"/bin/echo", "hello"}, Stdout: os.Stdout})
	}
	code, err := program()
	fmt.Println(code, err)
}

// TestRunLeavesNothing begins a run and ends it, beside another one of the same id.
func TestRunLeavesNothing(t *testing.T) {
	runs := &strata.Runs{Dir: filepath.Join(t.TempDir(), "state")}
	run, err := runs.Begin(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(runs.Dir); err != nil || fi.Mode().Perm()&0o077 != 0 {
		t.Errorf("the state directory has mode %v, %v", fi.Mode(), err)
	}
	if err := os.MkdirAll(filepath.Join(run.Dir(), "scratch", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := runs.Begin(t.Context(), "a"); !errors.Is(err, strata.ErrRunID) {
		t.Errorf("a second run of the id: %v", err)
	}
	if ids, err := runs.Sweep(t.Context(), every); err != nil || len(ids) > 0 {
		t.Errorf("a run that lives is swept: %q, %v", ids, err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := run.End(cancelled); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(filepath.Join(runs.Dir, "run")); err != nil || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
	for _, id := range []string{"", "../a", "a/b", "-a", "a b", "\x1b"} {
		if _, err := runs.Begin(t.Context(), id); !errors.Is(err, strata.ErrRunID) {
			t.Errorf("id %q: %v", id, err)
		}
	}
}

func every(strata.RunRecord) bool { return true }

// TestSweep takes away what runs left that were killed, wherever they were then.
func TestSweep(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct {
		name   string
		record string // what the run noted
		open   error  // of its VM
		vm     bool   // whether the state of the VM is there
		fails  error
		opened []string // VMs
	}{
		{name: "before it noted anything"},
		{name: "while it noted", record: `{"vm":"v","ow`},
		{name: "in a VM that has ended since", record: `{"vm":"v"}`, open: vmm.ErrGone, opened: []string{"v"}},
		{name: "in a VM that is no more", record: `{"vm":"v"}`, open: strata.ErrNoVM, opened: []string{"v"}},
		{name: "in a VM that cannot be opened", record: `{"vm":"v"}`, open: broken, vm: true, fails: broken,
			opened: []string{"v"}},
		{name: "while it started a VM", record: `{"vm":"v","own":true}`, open: strata.ErrNoVM, vm: true,
			opened: []string{"v"}},
		{name: "in a VM of its own that cannot be opened", record: `{"vm":"v","own":true}`, open: broken, vm: true,
			opened: []string{"v"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var opened []string
			runs := &strata.Runs{Dir: t.TempDir(), Grace: time.Second,
				Open: func(_ context.Context, name string) (*uvm.UtilityVM, error) {
					opened = append(opened, name)
					return nil, tt.open
				}}
			dir := filepath.Join(runs.Dir, "run", "killed")
			write(t, filepath.Join(dir, "run.json"), tt.record)
			write(t, filepath.Join(dir, "scratch", "disk"), "x")
			if tt.vm {
				write(t, filepath.Join(runs.VMDir("v"), "x"), "x")
			}
			if ids, err := runs.Abandoned(every); err != nil || !slices.Equal(ids, []string{"killed"}) {
				t.Errorf("Abandoned: %q, %v", ids, err)
			}
			if ids, err := runs.Sweep(t.Context(), func(strata.RunRecord) bool { return false }); err != nil || len(ids) > 0 {
				t.Errorf("what is not wanted is swept: %q, %v", ids, err)
			}
			ids, err := runs.Sweep(t.Context(), every)
			if !errors.Is(err, tt.fails) || (len(ids) == 1) != (tt.fails == nil) {
				t.Errorf("Sweep: %q, %v", ids, err)
			}
			if !slices.Equal(opened, tt.opened) {
				t.Errorf("opened %q, want %q", opened, tt.opened)
			}
			for _, path := range []string{dir, runs.VMDir("v")} {
				_, err := os.Stat(path)
				if stays := tt.fails != nil; stays != (err == nil) {
					t.Errorf("%s: %v", path, err)
				}
			}
		})
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = os.WriteFile(path, []byte(content), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
