package strata

import (
	"context"
	"errors"
	"path/filepath"
	"runtime"

	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// DryRun opens a copy of the ledger of the VM in dir on a machine that applies no changes: report is called with each
// Change that a call would make. The VM and its directory are not touched, and no lock is taken. A directory without a
// VM counts as an empty VM of the default driver. Programs cannot be run: the error matches vmm.ErrDryRun.
func DryRun(ctx context.Context, dir string, report func(vmm.Change) error, o OpenOptions) (*uvm.UtilityVM, error) {
	system, limits, err := plan(ctx, dir)
	if err != nil {
		return nil, err
	}
	return dryRun(ctx, dir, system, limits, report, o)
}

// DryRunHost is DryRun for the host itself (see OpenHost), whether or not OpenHost was called for dir before.
func DryRunHost(ctx context.Context, dir string, report func(vmm.Change) error, o OpenOptions) (*uvm.UtilityVM, error) {
	d, err := hostDriver()
	if err != nil {
		return nil, err
	}
	limits, err := d.Limits(vmm.Info{})
	if err != nil {
		return nil, err
	}
	return dryRun(ctx, dir, vmm.OS(runtime.GOOS), limits, report, o)
}

func dryRun(ctx context.Context, dir string, system vmm.OS, limits vmm.Limits, report func(vmm.Change) error,
	o OpenOptions) (*uvm.UtilityVM, error) {
	o.complete()
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	status, err := uvm.ReadStatus(dir)
	if err != nil {
		return nil, err
	}
	machine := vmm.NewDryRun(vmm.DryRun{ID: filepath.Base(dir), OS: system, Limits: limits,
		Observation: status.Observation(), Report: report})
	return uvm.DryRun(ctx, dir, machine, uvm.Options{Logger: o.Logger, RollbackTimeout: o.RollbackTimeout})
}

// plan returns the guest system and the limits of the VM in dir, or those that it would have if it were started with
// default options.
func plan(ctx context.Context, dir string) (vmm.OS, vmm.Limits, error) {
	info := VMInfo{OS: vmm.Linux}
	d, err := driverOf(ctx, dir)
	if err == nil {
		info, err = d.Inspect(ctx, dir)
	}
	if errors.Is(err, ErrNoVM) {
		info, err = VMInfo{OS: vmm.Linux}, nil
	}
	if err != nil {
		return "", vmm.Limits{}, err
	}
	if d == nil {
		d = drivers[0]
	}
	limits, err := d.Limits(info)
	return info.OS, limits, err
}
