package gcsserver

import (
	"context"
	"strings"
	"testing"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm"
)

// held is a Runtime that waits for its renewal, but not for ever.
type held struct{ *memory }

func (held) Await(context.Context) error { return ErrBusy }

// TestHeld: a guest that is held answers what renews it, and nothing else.
func TestHeld(t *testing.T) {
	c := connect(t, held{newMemory()})
	_, execErr := c.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"fail"}})
	_, observeErr := c.Observe(t.Context())
	for what, err := range map[string]error{"exec": execErr, "observe": observeErr,
		"mount": c.Modify(t.Context(), disk(0, "/m"))} {
		if err == nil || !strings.Contains(err.Error(), ErrBusy.Error()) {
			t.Errorf("%s: %v", what, err)
		}
	}
	err := c.Modify(t.Context(), hcsschema.GuestRequest{RequestType: hcsschema.RequestUpdate,
		ResourceType: hcsschema.ResourceTemplate, Settings: hcsschema.TemplateRenewal{}})
	if err == nil || strings.Contains(err.Error(), ErrBusy.Error()) { // the runtime in memory knows no templates
		t.Errorf("the renewal: %v", err)
	}
}
