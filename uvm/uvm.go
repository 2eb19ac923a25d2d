package uvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/stratavm/strata/internal/span"
	"github.com/stratavm/strata/vmm"
)

// UtilityVM is a running utility VM with its ledger. Its methods may be called concurrently.
type UtilityVM struct {
	machine vmm.Machine
	l       *ledger
	lock    *os.File
	dir     string
}

// Connect connects to the machine of a state directory. Open calls it with the lock held. If the machine no longer
// runs, the error matches vmm.ErrGone.
type Connect func(ctx context.Context) (vmm.Machine, error)

// Options are the options of Open.
type Options struct {
	Logger          *slog.Logger  // nil: nothing is logged
	Tracer          trace.Tracer  // nil: that of the span in the context of each call, if any
	Meter           metric.Meter  // nil: no metrics
	RollbackTimeout time.Duration // bounds rolling back a failed or cancelled call; 0: 30 s
	DiscardJournal  bool          // the machine is new: ignore a journal, which is about an earlier one
	ResponseTimeout time.Duration // bounds connecting to the machine, and its Observe, each; 0: no limit
}

// awaitAnswer returns ctx limited by ResponseTimeout.
func (o *Options) awaitAnswer(ctx context.Context) (context.Context, context.CancelFunc) {
	if o.ResponseTimeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, o.ResponseTimeout, fmt.Errorf("%w for %s", ErrNoAnswer, o.ResponseTimeout))
}

const defaultUndo = 30 * time.Second

func (o *Options) complete() {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.RollbackTimeout == 0 {
		o.RollbackTimeout = defaultUndo
	}
}

// Open opens the VM of a state directory. It takes the directory's lock (blocking until ctx ends, then the error
// matches ErrLocked), removes temporary files of processes that died, reads the journal, connects to the machine,
// compares the two, and rolls back what such a process had in progress. With an empty dir the ledger is kept in memory
// only.
//
// If the machine is gone, Open clears the journal and the error matches vmm.ErrGone; if it does not respond, the error
// matches ErrNoAnswer. If something in progress cannot be rolled back, the VM is usable all the same: the rest stays
// in claims in phase Releasing, and Recover tries again.
func Open(ctx context.Context, dir string, connect Connect, opts Options) (*UtilityVM, error) {
	opts.complete()
	vm := &UtilityVM{dir: dir}
	var err error
	if dir != "" {
		if vm.lock, err = lockDir(ctx, dir); err != nil {
			return nil, err
		}
		// Windows does not remove a file that the machine still has open. The next Open will.
		if err := removeTemps(dir); err != nil {
			opts.Logger.Warn("temporary files that an earlier process left are still there", "error", err)
		}
	}
	if err := vm.open(ctx, dir, connect, opts); err != nil {
		return nil, errors.Join(err, vm.unlock())
	}
	if dir != "" {
		handles.Lock()
		handles.vms = append(handles.vms, vm)
		handles.Unlock()
	}
	return vm, nil
}

func (vm *UtilityVM) open(ctx context.Context, dir string, connect Connect, opts Options) error {
	j, records, err := openJournal(dir)
	if err != nil {
		return err
	}
	limited, cancel := opts.awaitAnswer(ctx)
	machine, err := connect(limited)
	cancel()
	if err != nil {
		if isGone(err) {
			err = errors.Join(err, j.compact(nil)) // nothing is left to remove
		}
		return errors.Join(fmt.Errorf("connect to the utility VM: %w", err), j.close())
	}
	if opts.DiscardJournal {
		records = nil
	}
	if err := vm.start(ctx, machine, j, records, opts); err != nil {
		return errors.Join(err, j.close(), machine.Close())
	}
	return nil
}

// start creates the ledger from the journal and from what the machine observes.
func (vm *UtilityVM) start(ctx context.Context, machine vmm.Machine, j *journal, records []record, opts Options) error {
	tel, err := newTelemetry(opts)
	if err != nil {
		return err
	}
	vm.machine = machine
	vm.l = &ledger{
		machine: machine, log: opts.Logger, tel: tel, undo: opts.RollbackTimeout, journal: j,
		resources: map[int]*resource{}, byKey: map[string]*resource{}, byTarget: map[string]*resource{},
		claims: map[string]*Claim{},
		slots:  newSlotTable(machine.Limits()),
	}
	limited, cancel := opts.awaitAnswer(ctx)
	obs, err := machine.Observe(limited)
	cancel()
	if err != nil {
		return fmt.Errorf("ask the machine what is there: %w", err)
	}
	if err := vm.l.recover(ctx, records, obs); err != nil {
		return fmt.Errorf("recover the utility VM: %w", err)
	}
	return nil
}

// Machine returns the underlying machine, for processes and shutdown. Its devices must be changed through this package
// only.
func (vm *UtilityVM) Machine() vmm.Machine { return vm.machine }

// ID returns the machine's name.
func (vm *UtilityVM) ID() string { return vm.machine.ID() }

// OS returns the guest's operating system.
func (vm *UtilityVM) OS() vmm.OS { return vm.machine.OS() }

// Limits returns the capacity and capabilities of the VM.
func (vm *UtilityVM) Limits() vmm.Limits { return vm.machine.Limits() }

// Dir returns the state directory; empty if there is none.
func (vm *UtilityVM) Dir() string { return vm.dir }

// Close closes the handle and releases the lock. The VM keeps running; containers stay mounted and are found by Open.
func (vm *UtilityVM) Close() error {
	vm.l.mu.Lock()
	if vm.l.closed {
		vm.l.mu.Unlock()
		return nil
	}
	vm.l.closed = true
	err := vm.l.journal.close()
	vm.l.mu.Unlock()
	return errors.Join(err, vm.machine.Close(), vm.unlock())
}

// Shutdown powers the VM off, or terminates it when ctx ends, and closes the handle. Everything in the VM counts as
// released.
func (vm *UtilityVM) Shutdown(ctx context.Context) error {
	err := span.Do(ctx, "strata.vm.shutdown", vm.machine.Shutdown)
	if isGone(err) {
		err = nil
	}
	if err == nil {
		vm.l.mu.Lock()
		vm.l.gone = true
		err = vm.l.journal.compact(nil)
		vm.l.mu.Unlock()
	}
	return errors.Join(err, vm.Close())
}

// goneError returns the error of a machine that has exited, with the reason if known.
func goneError(m vmm.Machine) error {
	if err := m.Err(); err != nil {
		return err
	}
	return vmm.ErrGone
}
