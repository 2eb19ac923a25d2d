package uvm

import (
	"fmt"
	"path"
	"strings"

	"github.com/stratavm/strata/vmm"
)

// pathIdentity makes two spellings of one host path equal. Windows paths (a drive letter or two
// backslashes in front) compare without regard to case, slash direction, dots and trailing
// separators; other paths only lose dots and trailing separators. It looks at the text alone, so
// that a Windows path is the same on every system; links are to be resolved before.
func pathIdentity(p string) string {
	if p == "" {
		return ""
	}
	if !isWindowsPath(p) {
		return path.Clean(p)
	}
	s := strings.ToLower(strings.ReplaceAll(p, `\`, "/"))
	root := ""
	if strings.HasPrefix(s, "//") {
		root, s = "/", s[1:] // path.Clean folds the two slashes into one
	}
	return root + path.Clean(s)
}

func isWindowsPath(p string) bool {
	if strings.HasPrefix(p, `\\`) || strings.HasPrefix(p, "//?/") {
		return true
	}
	return len(p) >= 2 && p[1] == ':' && (p[0]|0x20) >= 'a' && (p[0]|0x20) <= 'z'
}

// mountRoots are where disks without a guest path of their own are mounted. The number that follows
// goes up with every request and is never used twice, so no path is reused while mounted.
var mountRoots = map[vmm.OS]string{vmm.Linux: "/run/mounts/m", vmm.Windows: `C:\mounts\m`}

func (vm *UtilityVM) nextMountPath() string {
	vm.l.mu.Lock()
	defer vm.l.mu.Unlock()
	vm.l.mounts++
	return fmt.Sprintf("%s%d", mountRoots[vm.OS()], vm.l.mounts)
}
