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

// DryRun opens an in-memory copy of the ledger of dir on a machine that applies no changes, to find out which Changes
// a call would make. The directory is only read and its lock is not taken; without a ledger in it the VM is empty.
// Status.Observation returns what such a machine's Observe has to return.
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

// Observation returns the devices and mounts of a machine whose ledger is s.
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

// readBooks reads the journal of a state directory without taking its lock. A missing journal is no error.
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
