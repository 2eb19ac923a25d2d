package strata

import (
	"context"
	"errors"
	"fmt"

	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/uvm"
)

// StopVM ends the programs in a VM, unmounts its containers, powers it off and removes its state directory dir.
// Read-only layers are not unmounted in a VM that is powered off. vm is closed in any case. When the deadline of ctx
// passes, the VM is terminated without asking its guest; when ctx is cancelled, StopVM returns the cause and the VM
// keeps running: the containers that it came to have no root any more, but hold their layers and their ids until
// layers.Mounted.Release. Containers that cannot be unmounted do not keep the VM from stopping: notice, if not nil, is
// called with the reason.
func StopVM(ctx context.Context, vm *uvm.UtilityVM, dir string, notice func(message string)) error {
	if err := UnmountForStop(ctx, vm, dir); err != nil && notice != nil {
		notice(fmt.Sprintf("not everything could be unmounted before the VM stops: %v", err))
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return errors.Join(context.Cause(ctx), vm.Close())
	}
	// Shutdown terminates the VM when ctx ends, so it may use all of the remaining time.
	if err := vm.Shutdown(ctx); err != nil {
		return err
	}
	return RemoveVM(context.WithoutCancel(ctx), dir)
}

// UnmountForStop is the part of StopVM before the VM is powered off. On a VM of DryRun it tells what StopVM unmounts.
func UnmountForStop(ctx context.Context, vm *uvm.UtilityVM, dir string) error {
	release := (*layers.Mounted).ReleaseScratch
	if d, err := driverOf(ctx, dir); err != nil || d.Traits().HostSystem { // what is mounted on this system stays
		release = (*layers.Mounted).Release
	}
	var errs []error
	for _, c := range vm.Claims() {
		errs = append(errs, releaseContainer(ctx, vm, c.ID(), release))
	}
	return errors.Join(errs...)
}

// killNow is KillVM with a timeout of its own, independent of ctx. A missing VM is no error.
func killNow(ctx context.Context, dir string) error {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTime)
	defer cancel()
	if err := KillVM(limited, dir); !errors.Is(err, ErrNoVM) {
		return err
	}
	return nil
}

// releaseContainer ends all programs of a container, including background processes, and unmounts it with release. A
// container that does not exist is no error.
func releaseContainer(ctx context.Context, vm *uvm.UtilityVM, id string,
	release func(*layers.Mounted, context.Context) error) error {
	m, err := layers.Open(vm, id)
	if errors.Is(err, uvm.ErrUnknownClaim) {
		return nil
	}
	if err == nil {
		err = m.EndPrograms(ctx)
	}
	if err == nil {
		err = release(m, ctx)
	}
	return err
}

// forgetHost removes the state of the host itself (see OpenHost) if nothing is mounted on it.
func forgetHost(ctx context.Context, vm *uvm.UtilityVM, dir string) error {
	if err := vm.Shutdown(ctx); err != nil {
		return err
	}
	if err := RemoveVM(ctx, dir); !errors.Is(err, ErrRunning) { // another process has just mounted something
		return err
	}
	return nil
}
