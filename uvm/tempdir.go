package uvm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

const tempPrefix = "temp-"

// TempDir creates a folder in the state directory for files that nobody needs any more once the machine
// has them open. The caller removes it; what a caller that died left, the next Open removes. Without a
// state directory the folder is where the system keeps temporary files, and nobody removes it later.
func (vm *UtilityVM) TempDir() (string, error) { return os.MkdirTemp(vm.dir, tempPrefix) }

// removeTemps removes the folders of TempDir. The lock is held, so nobody works with one.
func removeTemps(dir string) error {
	entries, err := os.ReadDir(dir)
	errs := []error{err}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
