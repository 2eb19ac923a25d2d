package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/stratavm/strata/internal/bootid"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/vmm"
)

// folder is the name of the machine's folder in a state directory.
const folder = "host"

// Driver is the driver of this package for package strata's table.
type Driver struct{}

var _ vmm.Driver = Driver{}

// Name implements vmm.Driver.
func (Driver) Name() string { return "local" }

// Traits implements vmm.Driver.
func (Driver) Traits() vmm.Traits { return vmm.Traits{HostSystem: true} }

// Start implements vmm.Driver.
func (Driver) Start(_ context.Context, o vmm.StartOptions) (vmm.Machine, error) {
	if o.OS == vmm.Windows {
		return nil, fmt.Errorf("a Windows system on this Linux host: %w", errors.ErrUnsupported)
	}
	return openTidy(o.Dir, vmm.OpenOptions{Logger: o.Logger})
}

// Open implements vmm.Driver.
func (Driver) Open(_ context.Context, dir string, o vmm.OpenOptions) (vmm.Machine, error) {
	if err := exists(dir); err != nil {
		return nil, err
	}
	return openTidy(dir, o)
}

// openTidy opens the machine for a caller that holds the lock of the directory, and removes what was left in it.
func openTidy(dir string, o vmm.OpenOptions) (vmm.Machine, error) {
	m, err := openIn(dir, o)
	if err != nil {
		return nil, err
	}
	if err := m.Tidy(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func openIn(dir string, o vmm.OpenOptions) (*Machine, error) {
	return Open(Options{Dir: filepath.Join(dir, folder), ID: filepath.Base(dir), Logger: o.Logger})
}

func exists(dir string) error {
	_, err := os.Stat(filepath.Join(dir, folder))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w in %s", vmm.ErrNoVM, dir)
	}
	return err
}

// OpenExec implements vmm.Driver.
func (Driver) OpenExec(_ context.Context, dir string, o vmm.OpenOptions) (vmm.Runner, error) {
	if err := exists(dir); err != nil {
		return nil, err
	}
	m, err := openIn(dir, o)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Inspect implements vmm.Driver. The host is always running.
func (d Driver) Inspect(_ context.Context, dir string) (vmm.Info, error) {
	if err := exists(dir); err != nil {
		return vmm.Info{}, err
	}
	idle, err := idle(filepath.Join(dir, folder))
	if err != nil {
		return vmm.Info{}, fmt.Errorf("inspect host machine %s: %w", dir, err)
	}
	return vmm.Info{Dir: dir, Driver: d.Name(), Running: true, OS: vmm.Linux, Idle: idle}, nil
}

// idle reports whether the machine has no devices or mounts. It changes nothing.
func idle(dir string) (bool, error) {
	var have machineFile
	b, err := regfile.ReadState(filepath.Join(dir, machineName))
	if err == nil {
		err = json.Unmarshal(b, &have)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // Open never completed
	}
	if err != nil {
		return false, err
	}
	boot, err := bootid.Read()
	if err != nil || have.Boot != boot {
		return err == nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return false, err
	}
	m := &Machine{dir: dir, mount: system{}}
	obs, err := m.observe()
	if errors.Is(err, fs.ErrNotExist) { // the records' folders, which Open creates before any mount
		return true, nil
	}
	return len(obs.Devices)+len(obs.Mounts) == 0, err
}

// Kill implements vmm.Driver: it unmounts everything. Programs that use it may lose their files.
func (Driver) Kill(ctx context.Context, dir string) error {
	if err := exists(dir); err != nil {
		return err
	}
	m, err := openIn(dir, vmm.OpenOptions{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	return errors.Join(m.Terminate(ctx), m.Close())
}

// Limits implements vmm.Driver.
func (Driver) Limits(vmm.Info) (vmm.Limits, error) { return limits(system{}), nil }
