package gcsserver

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/vmm"
)

// TestStats: what a container uses comes to the host; a guest that does not know says so.
func TestStats(t *testing.T) {
	m := newMemory()
	c := connect(t, m)
	got, err := c.ContainerStats(t.Context(), "web")
	want := vmm.ContainerStats{Memory: 7, Processes: []vmm.ContainerProcess{{PID: 1, Command: "sh"}}}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Error(err, d)
	}
	if _, err := connect(t, unknowing{newMemory()}).ContainerStats(t.Context(), "web"); !errors.Is(err,
		gcs.ErrUnsupported) {
		t.Errorf("a guest that does not know: %v", err)
	}
	// Of the VM itself there are none.
	if _, err := c.ContainerStats(t.Context(), ""); !errors.Is(err, gcs.ErrUnsupported) {
		t.Errorf("of the VM itself: %v", err)
	}
}

// unknowing is a runtime that cannot tell what containers use.
type unknowing struct{ *memory }

func (unknowing) Stats(string) (vmm.ContainerStats, error) {
	return vmm.ContainerStats{}, ErrUnsupported
}
