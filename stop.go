package strata

import (
	"context"
	"errors"
	"fmt"

	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/uvm"
)

// StopVM ends the programs in a VM, releases what is mounted in it, powers it off and removes its state
// directory dir. The layers of containers, to which nothing is written, are left to the guest's own end. vm is closed
// in any case. From the deadline of ctx on it is terminated without asking its guest; when ctx is cancelled instead,
// StopVM ends with the error of that and the VM runs on. What cannot be released goes with the VM: notice, where it is
// not nil, is called with the reason.
func StopVM(ctx context.Context, vm *uvm.UtilityVM, dir string, notice func(message string)) error {
	release := (*layers.Mounted).ReleaseScratch
	if d, err := driverOf(ctx, dir); err != nil || d.Traits().HostSystem { // what is mounted on this system stays
		release = (*layers.Mounted).Release
	}
	var errs []error
	for _, c := range vm.Claims() {
		errs = append(errs, releaseContainer(ctx, vm, c.ID(), release))
	}
	if err := errors.Join(errs...); err != nil && notice != nil {
		notice(fmt.Sprintf("not everything could be unmounted before the VM stops: %v", err))
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return errors.Join(context.Cause(ctx), vm.Close())
	}
	// Shutdown terminates the VM when its context ends, so that it takes the rest of the time.
	if err := vm.Shutdown(ctx); err != nil {
		return err
	}
	return RemoveVM(context.WithoutCancel(ctx), dir)
}

// killNow is KillVM with a time of its own.
func killNow(ctx context.Context, dir string) error {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTime)
	defer cancel()
	if err := KillVM(limited, dir); !errors.Is(err, ErrNoVM) {
		return err
	}
	return nil
}

// releaseContainer ends what runs in a container, what the program left in the background too, and unmounts it by
// release. A container that does not exist is no error.
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

// forgetHost removes the state of this system itself when nothing is mounted on it.
func forgetHost(ctx context.Context, vm *uvm.UtilityVM, dir string) error {
	if err := vm.Shutdown(ctx); err != nil {
		return err
	}
	if err := RemoveVM(ctx, dir); !errors.Is(err, ErrRunning) { // another process has just mounted something
		return err
	}
	return nil
}
