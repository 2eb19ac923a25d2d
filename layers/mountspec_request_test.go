package layers

import (
	"errors"
	"strings"
	"testing"

	"github.com/stratavm/strata/vmm"
)

func TestDescribedForTheWrongVM(t *testing.T) {
	linux := newWorld(t, vmm.Linux, vmm.Limits{SCSIControllers: 1, SCSILUNs: 64}, 0)
	windows := newWorld(t, vmm.Windows, vmm.Limits{SCSIControllers: 1, SCSILUNs: 64, VSMB: true}, 0)
	const parents = `parentLayerPaths=["C:\\l"]`
	for _, tt := range []struct {
		mount RootfsMount
		w     *world // nil: the host
		text  string // empty: it is right
	}{
		{RootfsMount{Type: MountLCOWLayer, Source: `C:\s`, Options: []string{parents}}, linux, ""},
		{RootfsMount{Type: MountLCOWLayer, Source: `C:\s`, Options: []string{parents}}, windows, "runs windows"},
		{RootfsMount{Type: MountWindowsLayer, Source: `C:\s`, Options: []string{parents}}, linux, "runs linux"},
		{RootfsMount{Type: MountWindowsLayer, Source: `C:\s`, Options: []string{parents}}, windows, ""},
		{RootfsMount{Type: MountCimFS, Source: `C:\s`, Options: []string{parents, `parentCimPaths=["C:\\c\\1.cim"]`}},
			windows, "on the host itself"},
		{RootfsMount{Type: MountCimFS, Source: `C:\s`, Options: []string{parents, `parentCimPaths=["C:\\c\\1.cim"]`}}, nil,
			""},
		{RootfsMount{Type: MountLCOWLayer, Source: `C:\s`, Options: []string{parents}}, nil, "in a VM"},
		{RootfsMount{Type: MountLCOWPartitioned,
			Options: []string{`scratch=C:\s`, `parent-partitioned-layers=[{"Path":"C:\\l.vhd"}]`}}, nil, "in a VM"},
	} {
		d, err := ParseRoot(nil, []RootfsMount{tt.mount})
		if err != nil {
			t.Fatal(err)
		}
		vm := linux.vm
		switch tt.w {
		case nil:
			vm = nil
		case windows:
			vm = windows.vm
		}
		r, err := d.Request(vm, "c1", nil)
		if tt.text != "" {
			if !errors.Is(err, ErrRootDescription) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%s: error %v, want %q in it", tt.mount.Type, err, tt.text)
			}
			continue
		}
		if err != nil || r.VM != vm || r.ID != "c1" || r.Scratch != `C:\s` || len(r.Layers) == 0 && r.CIM == nil {
			t.Errorf("%s: %+v, %v", tt.mount.Type, r, err)
		}
	}
}
