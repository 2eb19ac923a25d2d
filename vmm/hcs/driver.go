package hcs

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/stratavm/strata/vmm"
)

// DefaultBootFiles is the usual folder of kernel and initrd.img of Linux guests on Windows hosts.
const DefaultBootFiles = `C:\Program Files\Linux Containers`

// Driver is the driver of this package for package strata's table. Its VMs are persistent compute systems whose guest
// connection belongs to the Host Compute Service, so that they outlive the process that created them.
type Driver struct {
	// Host returns the host for the VMs. Nil: NativeHost, which cannot grant VMs access to files.
	Host func(*slog.Logger) (Host, error)
}

var _ vmm.Driver = Driver{}

func (d Driver) host(log *slog.Logger) (Host, error) {
	open := d.Host
	if open == nil {
		open = func(*slog.Logger) (Host, error) { return NativeHost() }
	}
	h, err := open(log)
	h.Logger = log
	return h, err
}

// Name implements vmm.Driver.
func (Driver) Name() string { return "hcs" }

// Traits implements vmm.Driver.
func (Driver) Traits() vmm.Traits { return vmm.Traits{} }

// startGrace bounds terminating a VM whose start failed.
const startGrace = time.Minute

// Start implements vmm.Driver.
func (d Driver) Start(ctx context.Context, o vmm.StartOptions) (vmm.Machine, error) {
	h, err := d.host(o.Logger)
	if err != nil {
		return nil, err
	}
	v := newStored(o, h.Build)
	if err := v.write(o.Dir); err != nil {
		return nil, err
	}
	v.remember(&h, o.Dir)
	m, err := v.create(ctx, h)
	if err != nil {
		if ctx.Err() == nil { // otherwise the service may still create the VM, which is found by the file
			err = errors.Join(err, forget(o.Dir))
		}
		return nil, err
	}
	if err := m.Start(ctx); err != nil {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), startGrace)
		defer cancel()
		ended := m.Terminate(grace)
		if ended == nil { // otherwise it may still exist
			ended = forget(o.Dir)
		}
		return nil, errors.Join(err, ended, m.Close())
	}
	return m, nil
}

// Open implements vmm.Driver.
func (d Driver) Open(ctx context.Context, dir string, o vmm.OpenOptions) (vmm.Machine, error) {
	v, err := readStored(dir)
	if err != nil {
		return nil, err
	}
	h, err := d.host(o.Logger)
	if err != nil {
		return nil, err
	}
	v.remember(&h, dir)
	m, err := v.open(ctx, h)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// OpenExec implements vmm.Driver. The service allows any number of processes to use a system.
func (d Driver) OpenExec(ctx context.Context, dir string, o vmm.OpenOptions) (vmm.Runner, error) {
	m, err := d.Open(ctx, dir, o)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Inspect implements vmm.Driver.
func (d Driver) Inspect(ctx context.Context, dir string) (vmm.Info, error) {
	v, err := readStored(dir)
	if err != nil {
		return vmm.Info{}, err
	}
	options := v.options()
	info := vmm.Info{Dir: dir, Driver: d.Name(), OS: vmm.Linux, Accel: "hyper-v", Started: v.Started,
		Memory: int(options.MemorySizeInMB), CPUs: int(options.ProcessorCount)}
	if v.WCOW != nil {
		info.OS = vmm.Windows
	}
	h, err := d.host(slog.New(slog.DiscardHandler))
	if err == nil {
		info.Running, err = Inspect(ctx, h.API, options.ID)
	}
	return info, err
}

// Kill implements vmm.Driver.
func (d Driver) Kill(ctx context.Context, dir string) error {
	v, err := readStored(dir)
	if err != nil {
		return err
	}
	h, err := d.host(slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return Kill(ctx, h.API, v.options().ID)
}

// Limits implements vmm.Driver. They match the options with which Start creates VMs.
func (d Driver) Limits(i vmm.Info) (vmm.Limits, error) {
	if i.OS == vmm.Windows {
		return vmm.Limits{SCSIControllers: 1, SCSILUNs: scsiLUNs, VSMB: true}, nil
	}
	o := DefaultLCOW("plan", owner, "", Build())
	return vmm.Limits{SCSIControllers: 1, SCSILUNs: scsiLUNs, VPMEMDevices: o.VPMemDeviceCount,
		VPMEMMaxBytes: o.VPMemSizeBytes, Plan9: true}, nil
}
