package strata

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// OpenHost opens this system itself as if it were a VM: layers are mounted on it, with the same ledger, journal
// and recovery. dir is the state directory, created when it does not exist. After a reboot nothing is mounted any
// more, and the ledger is empty. From then on dir is one for OpenVM, OpenRunner, InspectVM and KillVM too.
//
// On Linux it needs root, if only of a user namespace with mounts of its own: there layers are directory trees
// (layerdir.Tree). A scratch is a folder that is written to, or a raw file with ext4, which a user namespace cannot
// mount. See HostPath for where a root is.
//
// On Windows the roots are those of process-isolated containers: layers are folders or composite images, a scratch
// is a folder with sandbox.vhdx, a root is the path of a volume, and no programs can be run in it.
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

// hostDriver is the driver whose machine is this system.
func hostDriver() (vmm.Driver, error) {
	i := slices.IndexFunc(drivers, func(d vmm.Driver) bool { return d.Traits().HostSystem })
	if i < 0 {
		return nil, fmt.Errorf("layers are mounted without a VM on Linux and Windows only: %w", errors.ErrUnsupported)
	}
	return drivers[i], nil
}

// openOrStart opens the machine of a directory, which must be of the driver, or starts one.
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

// HostPath is where a guest path of a VM that is this system itself is; for other VMs "".
func HostPath(vm *uvm.UtilityVM, guest string) string {
	if m, ok := vm.Machine().(vmm.HostPather); ok {
		return m.HostPath(guest)
	}
	return ""
}
