package argon_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/internal/wclayer/wclayertest"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/argon"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// What one process applied is found by the next, until the system is booted again.
func TestRecordsOfOneBoot(t *testing.T) {
	dir := t.TempDir()
	m, _, _ := machine(t, dir, "one")
	a := layer(0)
	if err := m.Apply(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	seen := func(boot string) int {
		again, _, _ := machine(t, dir, boot)
		obs, err := again.Observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
		return len(obs.Devices) + len(obs.Mounts)
	}
	if n := seen("one"); n != 2 {
		t.Errorf("the next process finds %d, want 2", n)
	}
	if err := m.Apply(t.Context(), a.Inverse()); err != nil {
		t.Fatal(err)
	}
	if n := seen("one"); n != 0 {
		t.Errorf("after the removal the next process finds %d", n)
	}
	if err := m.Apply(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if n := seen("two"); n != 0 {
		t.Errorf("after a boot the next process finds %d", n)
	}
	if err := m.Terminate(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// What is in doubt counts as there until it is removed, and is made anew by another addition.
func TestUnknownOutcomes(t *testing.T) {
	for _, next := range []vmm.Op{vmm.Add, vmm.Remove} {
		m, service, platform := machine(t, t.TempDir(), "one")
		a := layer(0).HostOnly()
		service.Step("x", hcstest.Injection{Function: "ActivateLayer", Call: 1, HResult: "0xc0370109"})
		err := m.Apply(t.Context(), a)
		if host, _ := vmm.Outcomes(a, err); host != vmm.Unknown {
			t.Fatalf("host %s, %v", host, err)
		}
		if obs, err := m.Observe(t.Context()); err != nil || len(obs.Devices) != 1 {
			t.Errorf("in doubt: %v, %v", obs.Devices, err)
		}
		c := a
		c.Op = next
		if err := m.Apply(t.Context(), c); err != nil {
			t.Errorf("%s: %v", next, err)
		}
		if left := len(platform.Leftovers()); left != map[vmm.Op]int{vmm.Add: 1, vmm.Remove: 0}[next] {
			t.Errorf("%s left %q", next, platform.Leftovers())
		}
		if err := m.Apply(t.Context(), a.Inverse()); err != nil {
			t.Error(err)
		}
	}
}

// What a root rests on is not removed below it.
func TestOrderIsKept(t *testing.T) {
	m, _, _ := machine(t, t.TempDir(), "one")
	a := layer(0)
	cim := vmm.Change{Op: vmm.Add, Mount: vmm.CIMVolume{VolumeGUID: "00000000-0000-0000-0000-000000000001",
		Images: []vmm.CIMImage{{Dir: `C:\cims`, Name: "a.cim"}}}}
	over := vmm.Change{Op: vmm.Add, Device: vmm.WritableLayer{Path: `C:\scratch\9`},
		Mount: vmm.CombinedLayers{RootPath: `C:\scratch\9`, Filter: argon.UnionFS, Layers: []vmm.GuestLayer{{
			ID: "00000000-0000-0000-0000-000000000001", Path: `\\?\Volume{00000000-0000-0000-0000-000000000001}\Files`}}}}
	for _, c := range []vmm.Change{a, cim, over} {
		if err := m.Apply(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []vmm.Change{a.HostOnly(), cim, over.HostOnly()} {
		if err := m.Apply(t.Context(), c.Inverse()); !errors.Is(err, vmm.ErrBusy) {
			t.Errorf("%s: %v", c.Inverse(), err)
		}
	}
	if err := m.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// Changes that a Windows host does not know are refused before anything is done.
func TestForeignChanges(t *testing.T) {
	m, service, _ := machine(t, t.TempDir(), "one")
	for _, c := range []vmm.Change{
		{Op: vmm.Add, Device: vmm.SCSIDisk{Path: "x"}},
		{Op: vmm.Add, Device: vmm.VPMEMDevice{Path: "x"}},
		{Op: vmm.Add, Device: vmm.VSMBShare{Name: "x"}},
		{Op: vmm.Add, Device: vmm.Plan9Share{Name: "x"}},
		{Op: vmm.Add, Mount: vmm.MappedDisk{MountPath: "/x"}},
		{Op: vmm.Add, Mount: vmm.BlockCIMs{VolumeGUID: "x"}},
		{Op: vmm.Update, Device: vmm.WritableLayer{Path: `C:\x`}},
	} {
		if err := m.Apply(t.Context(), c); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", c, err)
		}
	}
	for _, g := range []vmm.Mount{vmm.CIMVolume{VolumeGUID: "x"},
		vmm.CIMVolume{VolumeGUID: "00000000-0000-0000-0000-000000000001"},
		vmm.CombinedLayers{RootPath: `C:\x`, Filter: argon.UnionFS, Layers: []vmm.GuestLayer{{ID: "x"}}}} {
		if err := m.Apply(t.Context(), vmm.Change{Op: vmm.Add, Mount: g}); err == nil {
			t.Errorf("%+v: no error", g)
		}
	}
	if calls := service.Trace(); len(calls) > 0 {
		t.Errorf("called: %v", calls)
	}
}

// A full life by way of the driver. Without records or after a boot the machine is idle.
func TestDriver(t *testing.T) {
	platform := wclayertest.New(hcstest.New(hcstest.Options{}))
	d := argon.Driver{Host: func(*slog.Logger) (wclayer.Host, error) {
		return wclayer.New(wclayer.Options{API: platform, UsesDir: t.TempDir()}), nil
	}}
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	ctx := context.Background()
	if _, err := d.Open(ctx, dir, vmm.OpenOptions{Logger: log}); !errors.Is(err, vmm.ErrNoVM) {
		t.Errorf("open before start: %v", err)
	}
	if _, err := d.Inspect(ctx, dir); !errors.Is(err, vmm.ErrNoVM) {
		t.Errorf("inspect before start: %v", err)
	}
	if err := d.Kill(ctx, dir); !errors.Is(err, vmm.ErrNoVM) {
		t.Errorf("kill before start: %v", err)
	}
	if _, err := d.Start(ctx, vmm.StartOptions{Dir: dir, OS: vmm.Linux, Logger: log}); !errors.Is(err,
		errors.ErrUnsupported) {
		t.Errorf("a Linux system: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "argon"), 0o700); err != nil {
		t.Fatal(err)
	}
	if info, err := d.Inspect(ctx, dir); err != nil || !info.Idle || !info.Running || info.OS != vmm.Windows ||
		info.Driver != "argon" {
		t.Errorf("inspect: %+v, %v", info, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "argon", "machine.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Inspect(ctx, dir); err == nil {
		t.Error("damaged records are no error")
	}
	if _, err := d.OpenExec(ctx, dir, vmm.OpenOptions{Logger: log}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("programs: %v", err)
	}
}
