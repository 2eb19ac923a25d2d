package local_test

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/local"
)

// TestDriverInspects reports whether the machine's state may be removed, and changes nothing.
func TestDriverInspects(t *testing.T) {
	ctx, dir, d := t.Context(), t.TempDir(), local.Driver{}
	if _, err := d.Inspect(ctx, dir); !errors.Is(err, vmm.ErrNoVM) {
		t.Errorf("no machine: %v", err)
	}
	if err := d.Kill(ctx, dir); !errors.Is(err, vmm.ErrNoVM) {
		t.Errorf("no machine: %v", err)
	}
	if _, err := d.Open(ctx, dir, vmm.OpenOptions{}); !errors.Is(err, vmm.ErrNoVM) {
		t.Errorf("no machine: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("looking left %v, %v", entries, err)
	}
	m, err := d.Start(ctx, vmm.StartOptions{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	share := vmm.Change{Op: vmm.Add, Device: vmm.Plan9Share{Name: "s", Path: t.TempDir()}}
	want := func(when string, idle bool) {
		t.Helper()
		info, err := d.Inspect(ctx, dir)
		if err != nil || !info.Running || info.Idle != idle || info.Driver != "local" {
			t.Errorf("%s: %+v, %v; want idle %t", when, info, err, idle)
		}
	}
	want("started", true)
	if err := m.Apply(ctx, share); err != nil {
		t.Fatal(err)
	}
	want("with a share", false)
	// After another boot nothing is in it.
	path := filepath.Join(dir, "host", "machine.json")
	record, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, []byte(`{"id":"x","boot":"earlier"}`), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	want("booted again", true)
	if err := os.WriteFile(path, record, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Kill(ctx, dir); err != nil {
		t.Fatal(err)
	}
	want("killed", true)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	want("opened by a process that died", true)
}
