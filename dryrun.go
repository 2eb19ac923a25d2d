package strata

import (
	"context"
	"errors"
	"path/filepath"
	"runtime"

	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// DryRun opens a copy of what is known of the VM of a directory, on a machine that makes no changes: report is
// called with each Change that a call would make. Neither the VM nor its directory are touched, and nobody is
// waited for. A directory without a VM is taken for an empty VM of the default driver. Programs cannot be run in
// it: the error matches vmm.ErrDryRun.
func DryRun(ctx context.Context, dir string, report func(vmm.Change) error, o OpenOptions) (*uvm.UtilityVM, error) {
	system, limits, err := plan(ctx, dir)
	if err != nil {
		return nil, err
	}
	return dryRun(ctx, dir, system, limits, report, o)
}

// DryRunHost is DryRun for this system itself (OpenHost), opened before or not.
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

// plan returns the system and the limits that the VM of a directory has, or would have if it were started with
// the default options.
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
