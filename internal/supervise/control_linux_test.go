package supervise

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/vmm"
)

// controls notes what a container is asked to do.
type controls struct{ asked []string }

func (c *controls) PauseContainer(_ context.Context, id string) error {
	c.asked = append(c.asked, "pause "+id)
	return vmm.ErrPaused
}

func (c *controls) ResumeContainer(_ context.Context, id string) error {
	c.asked = append(c.asked, "resume "+id)
	return vmm.ErrNotPaused
}

func (c *controls) UpdateContainer(_ context.Context, id string, r specs.LinuxResources) error {
	c.asked = append(c.asked, fmt.Sprint("update ", id, " ", *r.Pids.Limit))
	return nil
}

// TestControl: a container is paused, let go on and given limits by whoever reaches its supervisor, and errors keep
// their kind.
func TestControl(t *testing.T) {
	b := newBox(t)
	if err := b.client.Pause(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("nobody can: %v", err)
	}
	c := &controls{}
	b.server.Started(Program{Process: b.main, Control: c, Base: vmm.ProcessSpec{ContainerID: "web"}})
	if err := b.client.Pause(t.Context()); !errors.Is(err, vmm.ErrPaused) {
		t.Errorf("pause: %v", err)
	}
	if err := b.client.Resume(t.Context()); !errors.Is(err, vmm.ErrNotPaused) {
		t.Errorf("resume: %v", err)
	}
	limit := int64(7)
	if err := b.client.Update(t.Context(), specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}); err != nil {
		t.Errorf("update: %v", err)
	}
	if conn := b.dial(); writeJSON(conn, request{Op: "update"}) == nil {
		var a answer
		if err := readJSON(conn, &a); err != nil || a.Error == "" {
			t.Errorf("an update without limits: %+v, %v", a, err)
		}
	}
	if want := []string{"pause web", "resume web", "update web 7"}; !slices.Equal(c.asked, want) {
		t.Errorf("asked: %q", c.asked)
	}
	b.server.Ended()
	if err := b.client.Pause(t.Context()); !errors.Is(err, ErrEnded) {
		t.Errorf("paused what has ended: %v", err)
	}
}
