package layers_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/internal/wclayer/wclayertest"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// A call of the platform outlasts its caller and all the time that there is for taking back, and then
// succeeds: nothing stays on, be it the call before it or what it did itself.
func TestArgonSlowCallLeavesNothing(t *testing.T) {
	for _, slow := range []string{"ActivateLayer", "PrepareLayer", "GetLayerMountPath"} {
		t.Run(slow, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				service := hcstest.New(hcstest.Options{})
				host := wclayer.New(wclayer.Options{API: wclayertest.New(service)})
				hang := make(chan struct{})
				service.Script(func(fn string, _ int, _ map[string]any) (v hcstest.Verdict) {
					if fn == slow {
						v.After = hang
					}
					return v
				})
				mounter, folders := layers.Mounter{Host: host}, []string{`C:\l`, `C:\s`}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if _, err := mounter.MountContainerLayers(ctx, folders, "", nil); !errors.Is(err, wclayer.ErrUnfinished) ||
					!errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("error %v", err)
				}
				close(hang)
				synctest.Wait()
				if diff := cmp.Diff([]string(nil), service.Leftovers()); diff != "" {
					t.Error(diff)
				}
				service.Script(nil)
				if _, err := mounter.MountContainerLayers(t.Context(), folders, "", nil); err != nil {
					t.Fatal(err)
				}
				err := mounter.UnmountContainerLayers(t.Context(), folders, "", nil, layers.UnmountOperationAll)
				if err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// What the platform refuses to take back is tried once: a caller who was told of it may mend it himself.
func TestArgonRefusedRollbackIsTriedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := hcstest.New(hcstest.Options{})
		deactivations := 0
		service.Script(func(fn string, _ int, _ map[string]any) (v hcstest.Verdict) {
			switch fn {
			case "PrepareLayer":
				v.HR = 0x80070005
			case "DeactivateLayer":
				deactivations++
				v.HR = 0x80070005
			}
			return v
		})
		mounter := layers.Mounter{Host: wclayer.New(wclayer.Options{API: wclayertest.New(service)})}
		_, err := mounter.MountContainerLayers(t.Context(), []string{`C:\l`, `C:\s`}, "", nil)
		if err == nil || errors.Is(err, wclayer.ErrUnfinished) {
			t.Errorf("error %v", err)
		}
		synctest.Wait()
		if deactivations != 1 {
			t.Errorf("%d deactivations", deactivations)
		}
	})
}
