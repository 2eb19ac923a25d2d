package uvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/vmm"
)

// DryRun opens a copy of the ledger of dir, in memory only, on a machine that makes no changes: for
// telling which Changes a call would make. The directory is only read and its lock is not taken; a
// directory without a ledger is that of an empty VM. Observation returns what such a machine has to
// observe.
func DryRun(ctx context.Context, dir string, machine vmm.Machine, opts Options) (*UtilityVM, error) {
	opts.complete()
	records, err := readBooks(dir)
	if err != nil {
		return nil, err
	}
	vm := &UtilityVM{}
	if err := vm.start(ctx, machine, &journal{}, records, opts); err != nil {
		return nil, errors.Join(err, machine.Close())
	}
	return vm, nil
}

// Observation is what is in a machine with the ledger s.
func (s Status) Observation() vmm.Observation {
	var o vmm.Observation
	for _, r := range s.Resources {
		if r.What.Device != nil {
			o.Devices = append(o.Devices, r.What.Device)
		}
		if r.What.Mount != nil {
			o.Mounts = append(o.Mounts, r.What.Mount)
		}
	}
	return o
}

// readBooks reads the records of a state directory without its lock. None is no error.
func readBooks(dir string) ([]record, error) {
	f, _, err := regfile.Open(filepath.Join(dir, journalName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the ledger of %s: %w", dir, err)
	}
	defer f.Close()
	records, _, err := readRecords(f)
	if err != nil {
		return nil, fmt.Errorf("read the ledger of %s: %w", dir, err)
	}
	return records, nil
}
