package hcs_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// A VM whose guest does not answer is found and ended all the same.
func TestInspectAndKill(t *testing.T) {
	r := newRig(t, hcstest.Options{})
	o := r.lcow(false)
	o.Persistent = true
	inspect := func(want bool) {
		t.Helper()
		if there, err := hcs.Inspect(t.Context(), r.s, o.ID); there != want || err != nil {
			t.Errorf("there: %v, %v", there, err)
		}
	}
	inspect(false)
	m, err := hcs.CreateLCOW(t.Context(), r.host, o)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	inspect(true)
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.s.Script(func(fn string, _ int, args map[string]any) (v hcstest.Verdict) {
		if strings.Contains(fmt.Sprint(args), "GuestConnection") {
			v.HR = 0xc037010a // ERROR_VMCOMPUTE_CONNECTION_CLOSED
		}
		return v
	})
	if again, err := hcs.OpenLCOW(t.Context(), r.host, o); err == nil {
		t.Error("the guest answers", again.Close())
	}
	inspect(true)
	for range 2 {
		if err := hcs.Kill(t.Context(), r.s, o.ID); err != nil {
			t.Error(err)
		}
		inspect(false)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if left := r.s.Systems(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// What the service refuses is not taken for a VM that is gone.
func TestInspectAndKillRefused(t *testing.T) {
	for _, fn := range []string{"HcsOpenComputeSystem", "HcsGetComputeSystemProperties", "HcsTerminateComputeSystem"} {
		t.Run(fn, func(t *testing.T) {
			r := newRig(t, hcstest.Options{})
			m := r.start(r.lcow(false))
			r.s.Script(func(f string, _ int, _ map[string]any) (v hcstest.Verdict) {
				if f == fn {
					v.HR = 0x80070005
				}
				return v
			})
			there, err := hcs.Inspect(t.Context(), r.s, m.ID())
			if (err == nil) != there || (err == nil) != (fn == "HcsTerminateComputeSystem") {
				t.Errorf("there: %v, %v", there, err)
			}
			if err := hcs.Kill(t.Context(), r.s, m.ID()); (err == nil) != (fn == "HcsGetComputeSystemProperties") {
				t.Errorf("kill: %v", err)
			}
		})
	}
}
