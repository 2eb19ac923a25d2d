package qemu

import (
	"slices"
	"testing"

	"github.com/stratavm/strata/vmm"
)

// TestNoShares: a machine that will share no folders has memory of its own, and no slots for them.
func TestNoShares(t *testing.T) {
	for _, none := range []bool{false, true} {
		c := Config{ID: "machine", MemoryMiB: 256, CPUs: 1, NoShares: none}
		args := c.arguments(AccelTCG, nil)
		if own := slices.Contains(args, "memory-backend-ram,id=mem,size=256M"); own != none {
			t.Errorf("NoShares %t: arguments %q", none, args)
		}
		l, err := Driver{}.Limits(vmm.Info{NoShares: none})
		if err != nil || (l.VirtioFSShares == 0) != none {
			t.Errorf("NoShares %t: %d slots, %v", none, l.VirtioFSShares, err)
		}
	}
}
