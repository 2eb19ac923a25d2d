//go:build !windows

package strata

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/qemu"
)

const (
	runsBootImage    = true
	defaultMemoryMiB = 256
)

func startMachine(ctx context.Context, o VMOptions) (vmm.Machine, error) {
	if o.OS == vmm.Windows {
		return nil, fmt.Errorf("a Windows VM on a %s host: %w", runtime.GOOS, errors.ErrUnsupported)
	}
	cpus := o.CPUs
	if cpus == 0 {
		cpus = min(2, runtime.NumCPU())
	}
	m, err := qemu.Start(ctx, qemu.Config{
		Dir: o.Dir, ID: o.Name, Kernel: o.Image.Kernel, Initrd: o.Image.Initrd, Cmdline: o.Image.Cmdline,
		MemoryMiB: o.MemoryMiB, CPUs: cpus, Accel: o.Accel, Transport: o.Transport, CacheDir: kvmCache(o), Logger: o.Logger,
	})
	if err != nil {
		return nil, runningError(err)
	}
	return m, nil
}

// kvmCache is next to the boot images, which belong to this host too.
func kvmCache(o VMOptions) string {
	if o.Boot.CacheDir == "" {
		return ""
	}
	return filepath.Join(o.Boot.CacheDir, "..", "kvm")
}

// runningError adds our sentinels to the driver's.
func runningError(err error) error {
	switch {
	case errors.Is(err, qemu.ErrRunning):
		return fmt.Errorf("%w: %w", ErrRunning, err)
	case errors.Is(err, qemu.ErrNoMachine):
		return fmt.Errorf("%w: %w", ErrNoVM, err)
	}
	return err
}

func openMachine(ctx context.Context, dir string, o OpenOptions) (vmm.Machine, error) {
	m, err := qemu.Open(ctx, dir, o.Logger)
	if err != nil {
		return nil, runningError(err)
	}
	return m, nil
}

func openExec(ctx context.Context, dir string, o OpenOptions) (Runner, error) {
	s, err := qemu.OpenExec(ctx, dir, o.Logger)
	if err != nil {
		return nil, runningError(err)
	}
	return s, nil
}

func inspectMachine(_ context.Context, dir string) (VMInfo, error) {
	i, err := qemu.Inspect(dir)
	if err != nil {
		return VMInfo{}, runningError(err)
	}
	return VMInfo{Dir: dir, Running: i.Running, PID: i.PID, Driver: "qemu", Accel: i.Accel, Memory: i.MemoryMiB,
		CPUs: i.CPUs, Kernel: i.Kernel, Transport: i.Transport, Started: i.Started, OS: vmm.Linux}, nil
}

func killMachine(ctx context.Context, dir string) error { return qemu.Kill(ctx, dir) }

func limits(i VMInfo) vmm.Limits { return qemu.Limits(i.Memory) }
