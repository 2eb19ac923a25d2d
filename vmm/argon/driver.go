package argon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/stratavm/strata/internal/bootid"
	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/vmm"
)

// folder is the name of the machine's folder in a state directory.
const folder = "argon"

// Driver is the driver of this package for package strata's table.
type Driver struct {
	// Host returns this Windows host. On other systems the error matches errors.ErrUnsupported.
	Host func(*slog.Logger) (wclayer.Host, error)
}

var _ vmm.Driver = Driver{}

// Name implements vmm.Driver.
func (Driver) Name() string { return "argon" }

// Traits implements vmm.Driver.
func (Driver) Traits() vmm.Traits { return vmm.Traits{HostSystem: true} }

// Start implements vmm.Driver.
func (d Driver) Start(_ context.Context, o vmm.StartOptions) (vmm.Machine, error) {
	if o.OS == vmm.Linux {
		return nil, fmt.Errorf("a Linux system on this Windows host without a VM: %w", errors.ErrUnsupported)
	}
	return d.open(o.Dir, o.Logger)
}

// Open implements vmm.Driver.
func (d Driver) Open(_ context.Context, dir string, o vmm.OpenOptions) (vmm.Machine, error) {
	if err := exists(dir); err != nil {
		return nil, err
	}
	return d.open(dir, o.Logger)
}

func (d Driver) open(dir string, log *slog.Logger) (vmm.Machine, error) {
	host, err := d.Host(log)
	if err != nil {
		return nil, err
	}
	m, err := Open(Options{Dir: filepath.Join(dir, folder), ID: filepath.Base(dir), Host: host, Logger: log})
	if err != nil {
		return nil, err
	}
	return m, nil
}

func exists(dir string) error {
	_, err := os.Stat(filepath.Join(dir, folder))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w in %s", vmm.ErrNoVM, dir)
	}
	return err
}

// OpenExec implements vmm.Driver. Running programs on the host is not supported.
func (Driver) OpenExec(_ context.Context, dir string, _ vmm.OpenOptions) (vmm.Runner, error) {
	if err := exists(dir); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("programs in containers on the Windows host itself: %w", errors.ErrUnsupported)
}

// Inspect implements vmm.Driver. The host is always running.
func (d Driver) Inspect(_ context.Context, dir string) (vmm.Info, error) {
	if err := exists(dir); err != nil {
		return vmm.Info{}, err
	}
	file, err := readRecords(filepath.Join(dir, folder, machineName))
	if err != nil {
		return vmm.Info{}, err
	}
	idle := len(file.Records) == 0
	if !idle {
		boot, err := bootid.Read()
		if err != nil {
			return vmm.Info{}, err
		}
		idle = boot != file.Boot
	}
	return vmm.Info{Dir: dir, Driver: d.Name(), Running: true, OS: vmm.Windows, Idle: idle}, nil
}

// Kill implements vmm.Driver: it removes everything. Programs that use it may lose their files.
func (d Driver) Kill(ctx context.Context, dir string) error {
	if err := exists(dir); err != nil {
		return err
	}
	m, err := d.open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return errors.Join(m.Terminate(ctx), m.Close())
}

// Limits implements vmm.Driver.
func (Driver) Limits(vmm.Info) (vmm.Limits, error) { return limits(), nil }
