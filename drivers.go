package strata

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/stratavm/strata/internal/atomicfile"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/argon"
	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/local"
	"github.com/stratavm/strata/vmm/qemu"
)

// drivers lists the drivers of this host; the first is the default. A new VMM is a line here; see docs/drivers.md.
var drivers = driversOf(runtime.GOOS)

func driversOf(goos string) []vmm.Driver {
	if goos == "windows" {
		return []vmm.Driver{
			hcs.Driver{Host: hcsHost},
			argon.Driver{Host: windowsHost},
		}
	}
	return []vmm.Driver{
		qemu.Driver{},
		local.Driver{},
	}
}

// Drivers returns the names of this host's drivers, the default first.
func Drivers() []string {
	var names []string
	for _, d := range drivers {
		names = append(names, d.Name())
	}
	return names
}

// hcsHost returns the Host Compute Service of this Windows host, with functions that grant VMs access to files.
func hcsHost(log *slog.Logger) (hcs.Host, error) {
	h, err := hcs.NativeHost()
	if err != nil {
		return hcs.Host{}, err
	}
	files := wclayer.NewNative(log, "") // never destroys layers
	h.Grant, h.GrantGroup = files.GrantVMAccess, files.GrantVMGroupAccess
	return h, nil
}

// windowsHost returns the layer functions of this Windows host.
func windowsHost(*slog.Logger) (wclayer.Host, error) {
	if err := wclayer.Supported(); err != nil {
		return nil, err
	}
	return wclayer.Shared(), nil
}

// driverFile holds the name of the driver whose machine is in a state directory.
const driverFile = "driver"

// recordDriver records the driver of the machine that is about to be started in dir.
func recordDriver(dir string, d vmm.Driver) error {
	err := atomicfile.Write(filepath.Join(dir, driverFile), []byte(d.Name()+"\n"), atomicfile.Options{})
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	return nil
}

// driverOf returns the driver of the machine in dir, also if it has ended. State directories of old versions have no
// driver file: there each driver is asked. The error matches ErrNoVM if there is no machine.
func driverOf(ctx context.Context, dir string) (vmm.Driver, error) {
	name, err := regfile.ReadState(filepath.Join(dir, driverFile))
	if err == nil {
		d, err := driverNamed(strings.TrimSpace(string(name)))
		if err != nil {
			return nil, fmt.Errorf("state directory %s: %w", dir, err)
		}
		return d, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	for _, d := range drivers {
		if _, err := d.Inspect(ctx, dir); !errors.Is(err, ErrNoVM) {
			return d, nil // even if it cannot be read, it belongs to this driver
		}
	}
	return nil, fmt.Errorf("%w in %s", ErrNoVM, dir)
}

func driverNamed(name string) (vmm.Driver, error) {
	for _, d := range drivers {
		if d.Name() == name {
			return d, nil
		}
	}
	return nil, fmt.Errorf("driver %.64q: %w by this program on this host; it has %s",
		name, errors.ErrUnsupported, strings.Join(Drivers(), ", "))
}
