package strata

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/stratavm/strata/internal/bootimage"
	"github.com/stratavm/strata/internal/span"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// StartVM starts a VM and returns when its guest is ready. The VM runs until it is shut down or killed, independently
// of this process. If StartVM fails or ctx ends, nothing of the VM is left. If a VM is running in the directory, the
// error matches ErrRunning.
func StartVM(ctx context.Context, o VMOptions) (*uvm.UtilityVM, error) {
	var vm *uvm.UtilityVM
	err := span.Do(ctx, "strata.vm.start", func(ctx context.Context) (err error) {
		vm, err = startVM(ctx, o)
		return err
	})
	return vm, err
}

func startVM(ctx context.Context, o VMOptions) (*uvm.UtilityVM, error) {
	o.Logger = discard(o.Logger)
	if err := checkDir(o.Dir); err != nil {
		return nil, err
	}
	d, err := driverNamed(cmp.Or(o.Driver, drivers[0].Name()))
	if err != nil {
		return nil, err
	}
	if err := notRunning(ctx, o.Dir); err != nil {
		return nil, err
	}
	// The directory is created, and locked, only when there is something to put into it: an unlocked directory without
	// a machine counts as the rest of an interrupted start.
	if err := o.build(ctx, d); err != nil {
		return nil, err
	}
	_, err = os.Stat(o.Dir)
	fresh := errors.Is(err, os.ErrNotExist)
	vm, err := openStarted(ctx, o, func(ctx context.Context) (vmm.Machine, error) {
		if err := notRunning(ctx, o.Dir); err != nil { // checked again under the lock
			return nil, err
		}
		if err := recordDriver(o.Dir, d); err != nil {
			return nil, err
		}
		return d.Start(ctx, o.driver())
	}, d.Kill)
	if err != nil && fresh && !errors.Is(err, ErrRunning) {
		err = errors.Join(err, RemoveVM(context.WithoutCancel(ctx), o.Dir))
	}
	return vm, err
}

// build builds the boot image if the driver needs one and none is given.
func (o *VMOptions) build(ctx context.Context, d vmm.Driver) (err error) {
	if !d.Traits().BootImage || o.OS == vmm.Windows {
		return nil
	}
	if o.Image.Kernel == "" {
		if o.Image, err = bootimage.Build(ctx, bootimage.Options(o.Boot)); err != nil {
			return err
		}
	}
	return enoughMemory(*o)
}

// MakeTemplate creates the template of a kind of VM, from which VMOptions.Template restores VMs: it starts a VM at the
// lowest priority, saves it and ends it. Callers use it with VMOptions.TemplateMissing, or ahead of the first VM. made
// is false if the template exists. If ctx ends, nothing is left. What a killed process leaves is removed when templates
// are next made or removed. Dir, Name, NoShares and Namespace of the options are ignored.
func MakeTemplate(ctx context.Context, o VMOptions) (made bool, err error) {
	o.Logger = discard(o.Logger)
	d, err := driverNamed(cmp.Or(o.Driver, drivers[0].Name()))
	if err != nil {
		return false, err
	}
	maker, can := d.(vmm.TemplateMaker)
	if !can || o.OS == vmm.Windows {
		return false, fmt.Errorf("a template of VMs, driver %s: %w", d.Name(), errors.ErrUnsupported)
	}
	if err := o.build(ctx, d); err != nil {
		return false, err
	}
	return maker.MakeTemplate(ctx, o.driver())
}

// enoughMemory returns an error matching ErrMemory if the guest has too little memory to boot its image.
func enoughMemory(o VMOptions) error {
	need, err := bootimage.MinMemoryMiB(o.Image.Kernel, o.Image.Initrd)
	if err == nil && o.MemoryMiB != 0 && o.MemoryMiB < need {
		err = fmt.Errorf("%w: %d MiB given, this guest needs at least %d MiB to boot", ErrMemory, o.MemoryMiB, need)
	}
	return err
}

// openMade is uvm.Open for a directory that is created if it does not exist.
func openMade(ctx context.Context, dir string, connect uvm.Connect, o uvm.Options) (*uvm.UtilityVM, error) {
	for {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("state directory: %w", err)
		}
		locked := false
		vm, err := uvm.Open(ctx, dir, func(ctx context.Context) (vmm.Machine, error) {
			locked = true
			return connect(ctx)
		}, o)
		if !locked && errors.Is(err, os.ErrNotExist) && ctx.Err() == nil {
			continue // RemoveVM removed it in between
		}
		return vm, err
	}
}

// endTime bounds how long killing a VM may take.
const endTime = 10 * time.Second

// openStarted starts a machine and opens it. If opening fails, or ctx ends meanwhile, kill ends the machine.
func openStarted(ctx context.Context, o VMOptions, start uvm.Connect,
	kill func(context.Context, string) error) (*uvm.UtilityVM, error) {
	started := false
	vm, err := openMade(ctx, o.Dir, func(ctx context.Context) (vmm.Machine, error) {
		m, err := start(ctx)
		started = err == nil
		return m, err
	}, uvm.Options{Logger: o.Logger, RollbackTimeout: o.RollbackTimeout, DiscardJournal: true})
	if err == nil || !started {
		return vm, err
	}
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTime)
	defer cancel()
	return nil, errors.Join(err, kill(limited, o.Dir))
}

// notRunning returns an error matching ErrRunning when a VM of the directory runs.
func notRunning(ctx context.Context, dir string) error {
	info, err := InspectVM(ctx, dir)
	if errors.Is(err, ErrNoVM) {
		return nil
	}
	if err == nil && info.Running {
		return fmt.Errorf("%w in %s", ErrRunning, dir)
	}
	return err
}

// OpenVM reopens a running VM, whichever process started it, and rolls back what that process left incomplete. It
// blocks while another process has the VM open, until ctx ends. The error matches ErrNoVM if the directory has no VM,
// vmm.ErrGone if the VM no longer runs, and uvm.ErrNoAnswer if it does not respond.
func OpenVM(ctx context.Context, dir string, o OpenOptions) (*uvm.UtilityVM, error) {
	var vm *uvm.UtilityVM
	err := span.Do(ctx, "strata.vm.open", func(ctx context.Context) (err error) {
		vm, err = openVM(ctx, dir, o)
		return err
	})
	return vm, err
}

func openVM(ctx context.Context, dir string, o OpenOptions) (*uvm.UtilityVM, error) {
	o.complete()
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w in %s", ErrNoVM, dir)
	}
	vm, err := uvm.Open(ctx, dir, func(ctx context.Context) (vmm.Machine, error) {
		o.Locked()
		d, err := driverOf(ctx, dir)
		if err != nil {
			return nil, err
		}
		return d.Open(ctx, dir, o.driver())
	}, uvm.Options{Logger: o.Logger, RollbackTimeout: o.RollbackTimeout, ResponseTimeout: o.ResponseTimeout})
	if errors.Is(err, os.ErrNotExist) {
		if _, serr := os.Stat(dir); errors.Is(serr, os.ErrNotExist) { // it was stopped and removed meanwhile
			err = fmt.Errorf("%w in %s", ErrNoVM, dir)
		}
	}
	if err != nil {
		return nil, err
	}
	return vm, nil
}

// Runner runs programs in a VM.
type Runner = vmm.Runner

// OpenRunner connects to a running VM in order to run programs in it. It takes no lock: any number of processes may
// run programs while another one mounts (in a QEMU VM reached by serial ports, sixteen at a time; others wait). If the
// VM does not respond, the error matches uvm.ErrNoAnswer.
func OpenRunner(ctx context.Context, dir string, o OpenOptions) (Runner, error) {
	o.complete()
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	d, err := driverOf(ctx, dir)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.ResponseTimeout,
		fmt.Errorf("%w for %s", uvm.ErrNoAnswer, o.ResponseTimeout))
	defer cancel()
	return d.OpenExec(ctx, dir, o.driver())
}

// InspectVM describes the VM in a directory and whether it is running, without opening it. If the directory does not
// exist or has no VM, the error matches ErrNoVM.
func InspectVM(ctx context.Context, dir string) (VMInfo, error) {
	d, err := driverOf(ctx, dir)
	if err != nil {
		return VMInfo{}, err
	}
	return d.Inspect(ctx, dir)
}

// KillVM ends a VM at once, without asking its guest and without waiting for a process that has it open, and removes
// its state directory. What containers wrote last may be lost. If the directory does not exist, the error matches
// ErrNoVM. A handle to the VM in this process treats everything in it as gone; it must still be closed.
func KillVM(ctx context.Context, dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w in %s", ErrNoVM, dir)
	}
	d, err := driverOf(ctx, dir)
	if err == nil {
		err = d.Kill(ctx, dir)
	}
	if err != nil && !errors.Is(err, ErrNoVM) {
		return err
	}
	return RemoveVM(ctx, dir)
}

// RemoveVM removes the state directory of a VM that no longer runs, or of the host itself (see OpenHost) if nothing is
// mounted on it; otherwise the error matches ErrRunning. A directory that does not exist is no error.
func RemoveVM(ctx context.Context, dir string) error {
	return uvm.Remove(ctx, dir, func() (bool, error) {
		info, err := InspectVM(ctx, dir)
		switch {
		case errors.Is(err, ErrNoVM):
			return false, nil
		case err == nil && info.Running && !info.Idle:
			return true, ErrRunning
		}
		return false, err
	})
}

func checkDir(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("state directory %q: give an absolute path", dir)
	}
	return nil
}
