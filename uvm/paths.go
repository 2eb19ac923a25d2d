package uvm

import (
	"fmt"

	"github.com/stratavm/strata/vmm"
)

// mountRoots are where disks and shares without a guest path of their own are mounted. The number that follows
// goes up with every request and is never used twice, so no path is reused while mounted.
var mountRoots = map[vmm.OS]string{vmm.Linux: "/run/mounts/m", vmm.Windows: `C:\mounts\m`}

func (vm *UtilityVM) nextMountPath() string {
	vm.l.mu.Lock()
	defer vm.l.mu.Unlock()
	vm.l.mounts++
	return fmt.Sprintf("%s%d", mountRoots[vm.OS()], vm.l.mounts)
}
