package hcs_test

import (
	"errors"
	"log/slog"
	"os"
	"testing"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

func driver(r *rig) hcs.Driver {
	return hcs.Driver{Host: func(*slog.Logger) (hcs.Host, error) { return r.host, nil }}
}

// TestDriver leads a VM from its start to its end, as processes do that know its directory only.
func TestDriver(t *testing.T) {
	r := newRig(t, hcstest.Options{})
	d, ctx, dir, quiet := driver(r), t.Context(), t.TempDir(), slog.New(slog.DiscardHandler)
	none := func(when string) {
		t.Helper()
		_, openErr := d.Open(ctx, dir, vmm.OpenOptions{Logger: quiet})
		_, inspectErr := d.Inspect(ctx, dir)
		for _, err := range []error{openErr, inspectErr, d.Kill(ctx, dir)} {
			if !errors.Is(err, vmm.ErrNoVM) {
				t.Errorf("%s: %v", when, err)
			}
		}
	}
	none("before the start")
	for _, fn := range []string{"HcsCreateComputeSystem", "HcsStartComputeSystem"} {
		r.s.Script(func(f string, _ int, _ map[string]any) (v hcstest.Verdict) {
			if f == fn {
				v.HR = 0x80070005
			}
			return v
		})
		_, err := d.Start(ctx, vmm.StartOptions{Dir: dir, BootFiles: `C:\boot`, Logger: quiet})
		if !errors.Is(err, vmm.ErrAccessDenied) {
			t.Errorf("%s: %v", fn, err)
		}
		if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
			t.Errorf("%s: left %v, %v", fn, files, err)
		}
		none("after a start that failed")
	}
	r.s.Script(nil)

	m, err := d.Start(ctx, vmm.StartOptions{Dir: dir, Name: "web", MemoryMiB: 512, CPUs: 1, BootFiles: `C:\boot`,
		Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := d.Inspect(ctx, dir)
	if err != nil || !info.Running || info.Driver != "hcs" || info.OS != vmm.Linux || info.Memory != 512 ||
		info.CPUs != 1 {
		t.Errorf("inspected: %+v, %v", info, err)
	}
	again, err := d.Open(ctx, dir, vmm.OpenOptions{Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	if again.ID() != m.ID() {
		t.Errorf("opened %s, started %s", again.ID(), m.ID())
	}
	limits, err := d.Limits(info)
	if got := again.Limits(); err != nil || limits.SCSIControllers != got.SCSIControllers ||
		limits.VPMEMDevices != got.VPMEMDevices || limits.Plan9 != got.Plan9 {
		t.Errorf("planned %+v, is %+v, %v", limits, got, err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := d.Kill(ctx, dir); err != nil {
			t.Error(err)
		}
	}
	if info, err = d.Inspect(ctx, dir); err != nil || info.Running {
		t.Errorf("after its end: %+v, %v", info, err)
	}
	if _, err := d.Open(ctx, dir, vmm.OpenOptions{Logger: quiet}); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("opened after its end: %v", err)
	}
	if left := r.s.Systems(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}
