package hcs_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// A service that hangs, in whichever call, keeps no caller beyond the end of its context; when it comes round
// everything that nobody wants any more is given back.
func TestEveryCallEndsWithItsContext(t *testing.T) {
	create := func(ctx context.Context, r *rig, _ *hcs.Machine) error {
		o := r.lcow(false)
		o.ID = "another"
		_, err := hcs.CreateLCOW(ctx, r.host, o)
		return err
	}
	open := func(ctx context.Context, r *rig, m *hcs.Machine) error {
		o := r.lcow(false)
		o.ID, o.Persistent = m.ID(), true
		_, err := hcs.OpenLCOW(ctx, r.host, o)
		return err
	}
	exec := func(ctx context.Context, _ *rig, m *hcs.Machine) error {
		_, err := m.Exec(ctx, vmm.ProcessSpec{Args: []string{"true"}})
		return err
	}
	container := func(ctx context.Context, _ *rig, m *hcs.Machine) error {
		_, err := m.Exec(ctx, vmm.ProcessSpec{ContainerID: "c", Root: "/r", Args: []string{"true"}})
		return err
	}
	const register, registerProcess = "HcsRegisterComputeSystemCallback", "HcsRegisterProcessCallback"
	for name, tt := range map[string]struct {
		call        func(context.Context, *rig, *hcs.Machine) error
		hangs, then string // the call that hangs, and the last one that gives things back
		fails       string // the call whose failure leads there; none: the hanging one succeeds in the end
	}{
		"register after create":  {create, register, "HcsCloseComputeSystem", ""},
		"end what was created":   {create, "HcsTerminateComputeSystem", "HcsCloseComputeSystem", register},
		"close what was created": {create, "HcsCloseComputeSystem", "HcsCloseComputeSystem", register},
		"register after open":    {open, register, "HcsCloseComputeSystem", ""},
		"close what was opened":  {open, "HcsCloseComputeSystem", "HcsCloseComputeSystem", register},
		"unregister after open": {open, "HcsUnregisterComputeSystemCallback", "HcsCloseComputeSystem",
			"HcsGetComputeSystemProperties"},
		"register for a process":  {exec, registerProcess, "HcsCloseProcess", ""},
		"end a process":           {exec, "HcsTerminateProcess", "HcsCloseProcess", registerProcess},
		"close a process":         {exec, "HcsCloseProcess", "HcsCloseProcess", registerProcess},
		"register for containers": {container, register, "HcsCloseComputeSystem", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, hcstest.Options{})
			m := r.start(r.lcow(false))
			hold, reached := make(chan struct{}), make(chan struct{})
			hang := on(tt.hangs, hcstest.Verdict{Before: hold}, reached)
			r.s.Script(func(fn string, n int, args map[string]any) hcstest.Verdict {
				if fn == tt.fails {
					return hcstest.Verdict{HR: 0x80004005}
				}
				return hang(fn, n, args)
			})
			ctx, cancel := within(t)
			go func() { <-reached; cancel() }()
			if err := tt.call(ctx, r, m); err == nil || tt.fails == "" && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			close(hold)
			r.eventually(tt.then)
			for deadline := time.Now().Add(patient); len(r.s.Systems()) != 1; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("left: %q", r.s.Systems())
				}
			}
			r.s.Script(nil)
		})
	}
}
