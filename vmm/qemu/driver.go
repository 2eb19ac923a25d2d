package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/stratavm/strata/vmm"
)

// Driver implements vmm.Driver: its methods are the functions of this package with the same names.
type Driver struct{}

var _ interface {
	vmm.Driver
	vmm.TemplateMaker
} = Driver{}

// Name implements vmm.Driver.
func (Driver) Name() string { return "qemu" }

// Traits implements vmm.Driver.
func (Driver) Traits() vmm.Traits { return vmm.Traits{BootImage: true} }

// Start implements vmm.Driver.
func (Driver) Start(ctx context.Context, o vmm.StartOptions) (vmm.Machine, error) {
	if o.OS == vmm.Windows {
		return nil, fmt.Errorf("a Windows VM on a %s host: %w", runtime.GOOS, errors.ErrUnsupported)
	}
	return machine(Start(ctx, config(o)))
}

// config is the machine that the options say.
func config(o vmm.StartOptions) Config {
	return Config{
		Dir: o.Dir, ID: o.Name, Kernel: o.Image.Kernel, Initrd: o.Image.Initrd, Cmdline: o.Image.Cmdline,
		MemoryMiB: o.MemoryMiB, CPUs: cmp.Or(o.CPUs, min(2, runtime.NumCPU())), NoShares: o.NoShares,
		Accel: o.Accel, Transport: o.Transport, Namespace: o.Namespace, Template: o.Template,
		TemplateMissing: o.TemplateMissing, ImageID: o.Image.ID, CacheDir: o.CacheDir, Logger: o.Logger,
	}
}

// MakeTemplate implements vmm.TemplateMaker.
func (Driver) MakeTemplate(ctx context.Context, o vmm.StartOptions) (made bool, err error) {
	return MakeTemplate(ctx, config(o))
}

// Open implements vmm.Driver.
func (Driver) Open(ctx context.Context, dir string, o vmm.OpenOptions) (vmm.Machine, error) {
	return machine(Open(ctx, dir, o.Logger))
}

// machine converts a nil *Machine to a nil interface.
func machine(m *Machine, err error) (vmm.Machine, error) {
	if err != nil {
		return nil, err
	}
	return m, nil
}

// OpenExec implements vmm.Driver.
func (Driver) OpenExec(ctx context.Context, dir string, o vmm.OpenOptions) (vmm.Runner, error) {
	s, err := OpenExec(ctx, dir, o.Logger)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Inspect implements vmm.Driver.
func (Driver) Inspect(_ context.Context, dir string) (vmm.Info, error) { return Inspect(dir) }

// Kill implements vmm.Driver.
func (Driver) Kill(ctx context.Context, dir string) error { return Kill(ctx, dir) }

// Limits implements vmm.Driver.
func (Driver) Limits(i vmm.Info) (vmm.Limits, error) { return limits(i.Memory, i.NoShares), nil }
