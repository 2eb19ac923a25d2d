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

// drivers is the table of the drivers of this host, the one that VMs are started with by default first. A new
// VMM is a line here; see docs/drivers.md.
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

// Drivers returns the names of the drivers of this host, the default first.
func Drivers() []string {
	var names []string
	for _, d := range drivers {
		names = append(names, d.Name())
	}
	return names
}

// hcsHost is this Windows host, with the right to grant VMs access to files.
func hcsHost(log *slog.Logger) (hcs.Host, error) {
	h, err := hcs.NativeHost()
	if err != nil {
		return hcs.Host{}, err
	}
	files := wclayer.NewNative(log, "") // nothing is destroyed here
	h.Grant, h.GrantGroup = files.GrantVMAccess, files.GrantVMGroupAccess
	return h, nil
}

// windowsHost is this Windows host and its layers.
func windowsHost(*slog.Logger) (wclayer.Host, error) {
	if err := wclayer.Supported(); err != nil {
		return nil, err
	}
	return wclayer.Shared(), nil
}

// driverFile holds the name of the driver of a state directory's machine.
const driverFile = "driver"

// recordDriver notes whose machine a directory is going to hold.
func recordDriver(dir string, d vmm.Driver) error {
	err := atomicfile.Write(filepath.Join(dir, driverFile), []byte(d.Name()+"\n"), atomicfile.Options{})
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	return nil
}

// driverOf returns the driver of the machine that a directory holds or held. Directories of versions that
// recorded no name are shown to each driver. An error matches ErrNoVM when there is none.
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
			return d, nil // whatever is wrong with it, it is this driver's
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
