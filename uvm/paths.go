package uvm

import (
	"fmt"

	"github.com/stratavm/strata/vmm"
)

// mountRoots are the prefixes of mount points for disks and shares without a guest path. The number that follows is
// incremented for each request, so that no path is used twice.
var mountRoots = map[vmm.OS]string{vmm.Linux: "/run/mounts/m", vmm.Windows: `C:\mounts\m`}

func (vm *UtilityVM) nextMountPath() string {
	vm.l.mu.Lock()
	defer vm.l.mu.Unlock()
	vm.l.mounts++
	return fmt.Sprintf("%s%d", mountRoots[vm.OS()], vm.l.mounts)
}
