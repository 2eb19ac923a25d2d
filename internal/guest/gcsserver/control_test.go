package gcsserver

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm"
)

// TestControl: containers are paused, let go on and given limits, and what is refused keeps its kind.
func TestControl(t *testing.T) {
	m := newMemory()
	c := connect(t, m)
	is := func(err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%v, want one that matches %v", err, want)
		}
	}
	is(c.ResumeContainer(t.Context(), "web"), vmm.ErrNotPaused)
	is(c.PauseContainer(t.Context(), "web"), nil)
	is(c.PauseContainer(t.Context(), "web"), vmm.ErrPaused)
	is(c.ResumeContainer(t.Context(), "web"), nil)
	limit := int64(7 << 20)
	r := specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	given := r
	given.Devices = []specs.LinuxDeviceCgroup{{Access: "rwm"}} // those stay as they are
	is(c.UpdateContainer(t.Context(), "web", given), nil)
	if d := cmp.Diff([]specs.LinuxResources{r}, m.updates); d != "" {
		t.Error(d)
	}
	if err := c.PauseContainer(t.Context(), ""); err == nil {
		t.Error("the VM itself was paused")
	}
	s := &session{rt: m}
	is(s.modifyContainer(t.Context(), "web", Modification{RequestType: hcsschema.RequestAdd,
		ResourceType: hcsschema.ResourceNetwork}), ErrUnsupported)
	is(s.modifyContainer(t.Context(), "web", Modification{RequestType: hcsschema.RequestUpdate,
		ResourceType: hcsschema.ResourcePaused}), ErrUnsupported)
	is(s.modifyContainer(t.Context(), "web", Modification{RequestType: hcsschema.RequestUpdate,
		ResourceType: hcsschema.ResourceConstraints, Settings: []byte(`{"Linux":7}`)}), ErrJSON)
}
