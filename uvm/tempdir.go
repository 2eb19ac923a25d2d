package uvm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

const tempPrefix = "temp-"

// TempDir creates a folder in the state directory for files that are not needed any more once the machine has opened
// them. The caller must remove it; if the caller dies, the next Open does. Without a state directory it is in the
// system's temporary directory, and nothing else removes it.
func (vm *UtilityVM) TempDir() (string, error) { return os.MkdirTemp(vm.dir, tempPrefix) }

// removeTemps removes the folders of TempDir. The lock is held, so none of them is in use.
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
