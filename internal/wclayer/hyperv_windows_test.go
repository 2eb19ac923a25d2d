package wclayer_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stratavm/strata/internal/wclayer"
)

// TestHyperV has this Windows make a scratch over a base layer, mount both, and take them away again.
func TestHyperV(t *testing.T) {
	parent := os.Getenv("STRATA_BASE_LAYER")
	if os.Getenv("STRATA_HYPERV") != "1" || parent == "" {
		t.Skip("it mounts real layers: set STRATA_HYPERV=1, and STRATA_BASE_LAYER to the folder of a Windows base layer")
	}
	s := wclayer.NewNative(nil, t.TempDir())
	folder, parents := filepath.Join(t.TempDir(), "scratch"), []string{parent}
	must(t, s.CreateScratch(t.Context(), folder, parents))
	defer func() { must(t, s.Destroy(t.Context(), folder)) }()
	must(t, s.Activate(t.Context(), folder))
	defer func() { must(t, s.Deactivate(t.Context(), folder)) }()
	must(t, s.Prepare(t.Context(), folder, parents))
	defer func() { must(t, s.Unprepare(t.Context(), folder)) }()
	if path, err := s.MountPath(t.Context(), folder); err != nil || path == "" {
		t.Errorf("mount path %q, %v", path, err)
	}
}
