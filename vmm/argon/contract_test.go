package argon_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/internal/wclayer/wclayertest"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/argon"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// machine is a Windows host in memory as a machine, and the service that its calls pass.
func machine(t *testing.T, dir, boot string) (*argon.Machine, *hcstest.Service, *wclayertest.Platform) {
	t.Helper()
	service := hcstest.New(hcstest.Options{})
	platform := wclayertest.New(service)
	m, err := argon.Open(argon.Options{Dir: filepath.Join(dir, "argon"), Boot: boot,
		Host: wclayer.New(wclayer.Options{API: platform, UsesDir: t.TempDir()})})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if left := platform.Leftovers(); len(left) > 0 {
			t.Errorf("left on the host: %q", left)
		}
	})
	return m, service, platform
}

func layer(n int) vmm.Change {
	folder := fmt.Sprintf(`C:\scratch\%d`, n)
	return vmm.Change{Op: vmm.Add, Device: vmm.WritableLayer{Path: folder},
		Mount: vmm.CombinedLayers{RootPath: folder, Layers: []vmm.GuestLayer{{Path: fmt.Sprintf(`C:\layers\%d`, n)}}}}
}

func TestKeepsTheContract(t *testing.T) {
	vmmtest.Contract(t, func(t *testing.T) vmmtest.Env {
		m, service, _ := machine(t, t.TempDir(), "one")
		bad := layer(9)
		service.Script(func(fn string, _ int, args map[string]any) (v hcstest.Verdict) {
			if fn == "PrepareLayer" && args["id"] == bad.Device.(vmm.WritableLayer).Path {
				v.HR = 0xC0370112
			}
			return v
		})
		return vmmtest.Env{Machine: m, Disk: layer, Bad: bad, Recorded: true,
			Hang: func() (resume func()) {
				hang := make(chan struct{})
				service.Script(func(string, int, map[string]any) hcstest.Verdict { return hcstest.Verdict{Before: hang} })
				return func() { close(hang) }
			},
			Kill: func() {
				if err := m.Terminate(t.Context()); err != nil {
					t.Error(err)
				}
			}}
	})
}
