package strata

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// OpenHost opens the host itself as if it were a VM: layers are mounted on it, with the same ledger, journal and
// recovery. dir is the state directory and is created if needed. A reboot unmounts everything, and empties the ledger.
// Afterwards dir is also valid for OpenVM, OpenRunner, InspectVM and KillVM.
//
// On Linux it needs root, at least in a user namespace with its own mount namespace: there layers are directory trees
// (layerdir.Tree). A scratch is a folder, or a raw file with ext4, which cannot be mounted in a user namespace.
// HostPath returns the path of a root on the host.
//
// On Windows it creates the roots of process-isolated containers: layers are folders or composite images, a scratch is
// a folder with sandbox.vhdx, a root is a volume path. Programs cannot be run.
//
// On other systems the error matches errors.ErrUnsupported.
func OpenHost(ctx context.Context, dir string, o OpenOptions) (*uvm.UtilityVM, error) {
	o.complete()
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	d, err := hostDriver()
	if err != nil {
		return nil, err
	}
	return openMade(ctx, dir, func(ctx context.Context) (vmm.Machine, error) {
		o.Locked()
		return openOrStart(ctx, d, dir, o)
	}, uvm.Options{Logger: o.Logger, RollbackTimeout: o.RollbackTimeout})
}

// hostDriver returns the driver whose machine is the host itself.
func hostDriver() (vmm.Driver, error) {
	i := slices.IndexFunc(drivers, func(d vmm.Driver) bool { return d.Traits().HostSystem })
	if i < 0 {
		return nil, fmt.Errorf("layers are mounted without a VM on Linux and Windows only: %w", errors.ErrUnsupported)
	}
	return drivers[i], nil
}

// openOrStart opens the machine in dir, which must belong to driver d, or starts one.
func openOrStart(ctx context.Context, d vmm.Driver, dir string, o OpenOptions) (vmm.Machine, error) {
	have, err := driverOf(ctx, dir)
	if err == nil && have.Name() != d.Name() {
		info, err := have.Inspect(ctx, dir)
		if err == nil {
			return nil, fmt.Errorf("%s holds a VM of driver %s: use another directory: %w", dir, info.Driver, vmm.ErrOccupied)
		}
		if !errors.Is(err, ErrNoVM) {
			return nil, err
		}
	} else if err == nil {
		m, err := d.Open(ctx, dir, o.driver())
		if !errors.Is(err, ErrNoVM) {
			return m, err
		}
	} else if !errors.Is(err, ErrNoVM) {
		return nil, err
	}
	if err := recordDriver(dir, d); err != nil {
		return nil, err
	}
	return d.Start(ctx, vmm.StartOptions{Dir: dir, Logger: o.Logger})
}

// HostPath returns the host path of a guest path if vm is the host itself (see OpenHost), else "".
func HostPath(vm *uvm.UtilityVM, guest string) string {
	if m, ok := vm.Machine().(vmm.HostPather); ok {
		return m.HostPath(guest)
	}
	return ""
}
