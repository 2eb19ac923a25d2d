package vmmtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/stratavm/strata/vmm"
)

// driverFile is in the state directories of the machines of a Driver.
const driverFile = "fake"

// Driver starts Fakes. They live in the Driver: it stands for the system that VMMs run on, and outlives
// the handles of its machines.
type Driver struct {
	mu       sync.Mutex
	machines map[string]*Fake
}

var _ vmm.Driver = (*Driver)(nil)

// Name implements vmm.Driver.
func (*Driver) Name() string { return "fake" }

// Traits implements vmm.Driver.
func (*Driver) Traits() vmm.Traits { return vmm.Traits{} }

// Start implements vmm.Driver.
func (d *Driver) Start(ctx context.Context, o vmm.StartOptions) (vmm.Machine, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := d.machines[o.Dir]; m != nil && m.Err() == nil {
		return nil, fmt.Errorf("fake: %s: %w", o.Dir, vmm.ErrRunning)
	}
	if err := os.WriteFile(filepath.Join(o.Dir, driverFile), nil, 0o600); err != nil {
		return nil, fmt.Errorf("fake: %w", err)
	}
	limits, os := LinuxLimits(), vmm.Linux
	if o.OS == vmm.Windows {
		limits, os = WindowsLimits(), vmm.Windows
	}
	m := New(filepath.Base(o.Dir), os, limits)
	if d.machines == nil {
		d.machines = map[string]*Fake{}
	}
	d.machines[o.Dir] = m
	return m, nil
}

// find returns the machine of a directory, also one that has ended.
func (d *Driver) find(dir string) (*Fake, error) {
	_, err := os.Stat(filepath.Join(dir, driverFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("fake: %s: %w", dir, vmm.ErrNoVM)
	}
	if err != nil {
		return nil, fmt.Errorf("fake: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := d.machines[dir]; m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("fake: %s: %w", dir, vmm.ErrGone)
}

// Open implements vmm.Driver.
func (d *Driver) Open(_ context.Context, dir string, _ vmm.OpenOptions) (vmm.Machine, error) {
	m, err := d.find(dir)
	if err == nil {
		err = m.Err()
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

// OpenExec implements vmm.Driver.
func (d *Driver) OpenExec(ctx context.Context, dir string, o vmm.OpenOptions) (vmm.Runner, error) {
	m, err := d.Open(ctx, dir, o)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Inspect implements vmm.Driver.
func (d *Driver) Inspect(_ context.Context, dir string) (vmm.Info, error) {
	m, err := d.find(dir)
	if err != nil && !errors.Is(err, vmm.ErrGone) {
		return vmm.Info{}, err
	}
	info := vmm.Info{Dir: dir, Driver: d.Name(), OS: vmm.Linux, Started: time.Unix(0, 0).UTC()}
	if err == nil {
		info.OS, info.Running = m.OS(), m.Err() == nil
	}
	return info, nil
}

// Kill implements vmm.Driver.
func (d *Driver) Kill(_ context.Context, dir string) error {
	m, err := d.find(dir)
	if errors.Is(err, vmm.ErrGone) {
		return nil
	}
	if err == nil {
		m.Kill()
	}
	return err
}

// Limits implements vmm.Driver.
func (*Driver) Limits(i vmm.Info) (vmm.Limits, error) {
	if i.OS == vmm.Windows {
		return WindowsLimits(), nil
	}
	return LinuxLimits(), nil
}
