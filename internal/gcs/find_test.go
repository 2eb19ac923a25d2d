package gcs

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/stratavm/strata/vmm"
)

// TestFindProcess: a guest's answer to a wait that has no time says whether it knows the process.
func TestFindProcess(t *testing.T) {
	for name, tt := range map[string]struct {
		known ResponseBase // what the guest answers to a wait without time
		find  error        // nil: it is found
	}{
		"it runs":                   {ResponseBase{Result: ResultTimeout}, nil},
		"it has ended":              {ResponseBase{}, nil},
		"it never was":              {ResponseBase{Result: ResultElementNotFound}, vmm.ErrNoProcess},
		"nor was its container":     {ResponseBase{Result: ResultContainerNotFound}, vmm.ErrNoProcess},
		"the guest cannot look now": {ResponseBase{Result: ResultBusy}, ErrBusy},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := against(t, func(h Header, payload []byte) []byte {
				var r WaitRequest
				if err := json.Unmarshal(payload, &r); err != nil || h.Type != TypeWaitForProcess ||
					r.ContainerId != "web" || r.ProcessId != 1001 {
					t.Errorf("asked for %v %+v, %v", h.Type, r, err)
				}
				if r.TimeoutInMs != InfiniteTimeout {
					return answer(t, h, &WaitResponse{ResponseBase: tt.known, ExitCode: 7})
				}
				return answer(t, h, &WaitResponse{ExitCode: 7})
			})
			p, err := c.FindProcess(t.Context(), "web", 1001)
			if !errors.Is(err, tt.find) {
				t.Fatalf("got %v, want %v", err, tt.find)
			}
			if err != nil {
				if errors.Is(err, vmm.ErrNoProcess) != (tt.find == vmm.ErrNoProcess) {
					t.Errorf("%v matches %q and should not", err, vmm.ErrNoProcess)
				}
				return
			}
			if code, err := p.Wait(t.Context()); code != 7 || err != nil || p.Pid() != 1001 {
				t.Errorf("process %d ended with %d, %v; want 1001, 7", p.Pid(), code, err)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
