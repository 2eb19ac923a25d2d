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

// Connect returns the machine that a state directory belongs to. Open calls it with the lock held; an
// error matching vmm.ErrGone says that the machine does not run any more.
type Connect func(ctx context.Context) (vmm.Machine, error)

// Options are the optional parts of Open.
type Options struct {
	Logger          *slog.Logger  // nil: silent
	Tracer          trace.Tracer  // nil: that of the span in the context of each call, if any
	Meter           metric.Meter  // nil: no metrics
	RollbackTimeout time.Duration // grace for taking back what a failed or cancelled call began; 0: 30 s
	DiscardJournal  bool          // the machine is new: what the ledger says was in an earlier one
	ResponseTimeout time.Duration // what connecting and asking the machine what is there may take each; 0: no limit
}

// awaitAnswer bounds a context by o.Answer.
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

// Open reopens the VM of a state directory: it takes the directory's lock (waiting for it until ctx
// ends, then ErrLocked), removes temporary files that a process that died left, reads the journal,
// connects to the machine, compares, and undoes what such a process had under way. An empty dir keeps
// the ledger in memory only.
//
// When the machine is gone Open forgets what was in it and fails with an error matching vmm.ErrGone;
// when it says nothing, with one matching ErrNoAnswer.
// When something that was under way cannot be undone the VM is usable all the same: the rest stays
// in claims that are releasing, and Recover tries again.
func Open(ctx context.Context, dir string, connect Connect, opts Options) (*UtilityVM, error) {
	opts.complete()
	vm := &UtilityVM{dir: dir}
	var err error
	if dir != "" {
		if vm.lock, err = lockDir(ctx, dir); err != nil {
			return nil, err
		}
		// A machine may still have a file open that Windows then does not remove. The next Open will.
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
			err = errors.Join(err, j.compact(nil)) // nothing of it is left to take away
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

// start creates the ledger of what the journal says and what is in the machine.
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

// Machine is the machine underneath, for processes and shutdown. Devices are not to be changed
// behind the back of this package.
func (vm *UtilityVM) Machine() vmm.Machine { return vm.machine }

// ID is the machine's name.
func (vm *UtilityVM) ID() string { return vm.machine.ID() }

// OS is what runs in the VM.
func (vm *UtilityVM) OS() vmm.OS { return vm.machine.OS() }

// Limits says what the VM can hold.
func (vm *UtilityVM) Limits() vmm.Limits { return vm.machine.Limits() }

// Dir is the state directory; empty when there is none.
func (vm *UtilityVM) Dir() string { return vm.dir }

// Close releases the VM, which runs on. What containers hold in it stays and is found by Open.
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

// Shutdown powers the VM off (ending it the hard way when ctx ends first) and closes the handle. All
// that was in it is gone with it.
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

// goneError is the error of a machine that has exited, with the reason where the machine tells it.
func goneError(m vmm.Machine) error {
	if err := m.Err(); err != nil {
		return err
	}
	return vmm.ErrGone
}
