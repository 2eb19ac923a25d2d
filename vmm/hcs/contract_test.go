package hcs_test

import (
	"fmt"
	"testing"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
	"github.com/stratavm/strata/vmm/vmmtest"
)

func TestContract(t *testing.T) {
	for name, external := range both {
		for guest, old := range map[string]bool{"guest of 2021": true, "guest of today": false} {
			t.Run(name+", "+guest, func(t *testing.T) {
				vmmtest.Contract(t, func(t *testing.T) vmmtest.Env { return contractEnv(t, external, old) })
			})
		}
	}
}

func contractEnv(t *testing.T, external, old bool) vmmtest.Env {
	r := newRig(t, hcstest.Options{OldGuest: old})
	o := r.lcow(external)
	o.SCSIControllerGUIDs, o.SCSIControllerCount = true, 4
	m := r.start(o)
	disk := vmmtest.ContractDisk(func(n int) string { return fmt.Sprintf(`C:\layers\%d\layer.vhd`, n) }, vmm.FormatVHD)
	return vmmtest.Env{
		Machine: m,
		Disk:    disk,
		Bad:     refusedByGuest(external, disk),
		Hang: func() func() {
			hold := make(chan struct{})
			r.s.Script(func(string, int, map[string]any) hcstest.Verdict { return hcstest.Verdict{Before: hold} })
			return func() { r.s.Script(nil); close(hold) }
		},
		Kill: func() { r.s.Kill(m.ID()) },
	}
}

// refusedByGuest is an addition whose device the guest cannot mount, which over an internal connection
// cannot be told from one that the host refuses.
func refusedByGuest(external bool, disk func(int) vmm.Change) vmm.Change {
	if !external {
		return vmm.Change{}
	}
	c := disk(7)
	mount := c.Mount.(vmm.MappedDisk)
	mount.LUN++ // there is no such disk
	c.Mount = mount
	return c
}

var _ vmm.Machine = (*hcs.Machine)(nil)
