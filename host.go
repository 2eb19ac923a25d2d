package strata

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/local"
)

// hostDir is where the state directory of this system itself keeps the machine.
const hostDir = "host"

// OpenHost takes up this Linux system itself as if it were a VM: layers are mounted on it, with the
// same books, journal and recovery. dir is the state directory, made when it does not exist; see
// HostPath for where a root is. It needs root, if only of a user namespace with mounts of its own: there
// layers are directory trees (layerdir.Tree). A scratch is a folder that is written to, or a raw file
// with ext4, which a user namespace cannot mount. After a reboot nothing is mounted any more, and the
// books are empty. From then on dir is one for OpenVM, OpenRunner, InspectVM and KillVM too. On other
// systems the error matches errors.ErrUnsupported.
func OpenHost(ctx context.Context, dir string, o OpenOptions) (*uvm.UtilityVM, error) {
	o.complete()
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	return openMade(ctx, dir, func(context.Context) (vmm.Machine, error) {
		o.Locked()
		return takeHost(dir, o)
	}, uvm.Options{Logger: o.Logger, RollbackTimeout: o.RollbackTimeout})
}

// HostPath is where a guest path of a VM that is this system itself is; for other VMs "".
func HostPath(vm *uvm.UtilityVM, guest string) string {
	if m, ok := vm.Machine().(*local.Machine); ok {
		return m.HostPath(guest)
	}
	return ""
}

func openHost(dir string, o OpenOptions) (*local.Machine, error) {
	return local.Open(local.Options{Dir: filepath.Join(dir, hostDir), ID: filepath.Base(dir), InitPath: o.InitPath, Logger: o.Logger})
}

// takeHost is openHost for who holds the lock of the directory, and mends what was left there.
func takeHost(dir string, o OpenOptions) (vmm.Machine, error) {
	m, err := openHost(dir, o)
	if err != nil {
		return nil, err
	}
	if err := m.Tidy(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func isHost(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, hostDir))
	return err == nil
}

// killHost unmounts everything, whatever uses it may lose it.
func killHost(ctx context.Context, dir string) error {
	m, err := openHost(dir, OpenOptions{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	if err := m.Terminate(ctx); err != nil {
		return errors.Join(err, m.Close())
	}
	return errors.Join(m.Close(), os.RemoveAll(filepath.Join(dir, hostDir)))
}

// hostInUse reports whether anything is mounted on this system itself.
func hostInUse(ctx context.Context, dir string) (bool, error) {
	m, err := openHost(dir, OpenOptions{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return false, err
	}
	obs, err := m.Observe(ctx)
	return len(obs.Devices)+len(obs.Mounts) > 0, errors.Join(err, m.Close())
}

// hostLimits is for plans: what this system can hold.
func hostLimits(dir string) (vmm.Limits, error) {
	m, err := openHost(dir, OpenOptions{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return vmm.Limits{}, err
	}
	return m.Limits(), m.Close()
}
