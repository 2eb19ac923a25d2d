package strata

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/stratavm/strata/internal/lockfile"
	"github.com/stratavm/strata/internal/span"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// HostVM is the name of the host itself among the VMs of a state directory; see OpenHost.
const HostVM = "host"

// ErrRunID says that a run id is invalid, or in use by another run or by another container of its VM.
var ErrRunID = errors.New("the id of the run cannot be used")

// Runs manages the runs of a state directory. A run mounts one container, in a VM of its own or in a running one, and
// cleans up when it ends. Runs are crash-safe: a run has a folder, in which it records its VM before it uses it, and a
// lock that the kernel releases when its process ends. What a killed process left behind is removed by the next Begin
// with the same id, or by Sweep. Only Dir must be set. Methods may be called concurrently, by any number of processes.
type Runs struct {
	// Dir is the state directory: Dir/run/ID is the folder of a run, Dir/vms/NAME the state directory of a VM.
	Dir string
	// Open opens the VM called name, for a run or to clean up after one; nil: OpenVM, and OpenHost for HostVM.
	Open func(ctx context.Context, name string) (*uvm.UtilityVM, error)
	// Notice, if not nil, is called with messages for the user that are not errors, such as that a VM was killed
	// without unmounting.
	Notice func(message string)
	// Cleanup bounds how long the end of a run may take; 0: one minute. Grace bounds it from the moment the context of
	// the call ends; 0: 10 s.
	Cleanup, Grace time.Duration
}

// RunRecord says where the container of a run is.
type RunRecord struct {
	VM  string `json:"vm,omitempty"`  // name of the VM with the container; empty until it is known
	Own bool   `json:"own,omitempty"` // the run started the VM, and stops it at its end
}

// Run is a run in progress. The caller must call End, also after a failure. Methods may not be called concurrently.
type Run struct {
	runs   *Runs
	id     string
	dir    string
	lock   *os.File
	record RunRecord
}

// runFile is the file in a run's folder that holds its RunRecord. While the run lives, its process holds the file's
// lock; if the lock is free, the run was killed.
const runFile = "run.json"

var runID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)

// VMDir returns the state directory of the VM called name.
func (rs *Runs) VMDir(name string) string { return filepath.Join(rs.Dir, "vms", name) }

func (rs *Runs) runDir(id string) string { return filepath.Join(rs.Dir, "run", id) }

func (rs *Runs) notice(format string, args ...any) {
	if rs.Notice != nil {
		rs.Notice(fmt.Sprintf(format, args...))
	}
}

func (rs *Runs) open(ctx context.Context, name string) (*uvm.UtilityVM, error) {
	switch {
	case rs.Open != nil:
		return rs.Open(ctx, name)
	case name == HostVM:
		return OpenHost(ctx, rs.VMDir(name), OpenOptions{})
	}
	return OpenVM(ctx, rs.VMDir(name), OpenOptions{})
}

// cleanupContext returns a context for cleaning up, which outlives ctx by up to Grace.
func (rs *Runs) cleanupContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return outlast(ctx, cmp.Or(rs.Cleanup, time.Minute), cmp.Or(rs.Grace, 10*time.Second))
}

// errNoTime is the cause with which a context of outlast ends.
var errNoTime = fmt.Errorf("the time for cleaning up is over: %w", context.DeadlineExceeded)

// outlast returns a context that ends after limit, or grace after ctx ends, whichever comes first.
func outlast(ctx context.Context, limit, grace time.Duration) (context.Context, context.CancelFunc) {
	whole, cancelWhole := context.WithTimeoutCause(context.WithoutCancel(ctx), limit, errNoTime)
	out, cancel := context.WithCancelCause(whole)
	stop := context.AfterFunc(ctx, func() {
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-t.C:
			cancel(errNoTime)
		case <-out.Done():
		}
	})
	return out, func() { stop(); cancel(nil); cancelWhole() }
}

// lockTime is how long Begin waits for a lock: long enough for a Sweep that examines the folder.
const lockTime = time.Second

// waitLock takes the lock of a file. It returns used if another process holds it for longer than lockTime.
func waitLock(ctx context.Context, path string, used error) (*os.File, error) {
	limited, cancel := context.WithTimeout(ctx, lockTime)
	defer cancel()
	lock, err := lockfile.Wait(limited, path, false)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = used
	}
	return lock, err
}

// lockFolder is waitLock for a file in a folder that is created if it does not exist.
func lockFolder(ctx context.Context, path string, used error) (*os.File, error) {
	for {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, err
		}
		lock, err := waitLock(ctx, path, used)
		if !errors.Is(err, os.ErrNotExist) { // else Sweep has just removed the folder
			return lock, err
		}
	}
}

// Begin begins the run called id, which is also the id of its container: 1 to 63 letters, digits, '_', '.' or '-',
// starting with a letter or digit. It first cleans up after an earlier run with that id that was killed. If the id is
// invalid or a live run uses it, the error matches ErrRunID.
func (rs *Runs) Begin(ctx context.Context, id string) (*Run, error) {
	if err := checkDir(rs.Dir); err != nil {
		return nil, err
	}
	if !runID.MatchString(id) {
		return nil, fmt.Errorf("%w: %q: use 1 to 63 letters, digits, '_', '.' or '-', a letter or digit first", ErrRunID, id)
	}
	dir := rs.runDir(id)
	for {
		lock, err := lockFolder(ctx, filepath.Join(dir, runFile), fmt.Errorf("%w: run %q is active", ErrRunID, id))
		if err != nil {
			return nil, err
		}
		r := &Run{runs: rs, id: id, dir: dir, lock: lock}
		entries, err := os.ReadDir(dir)
		if err == nil && !r.read() && len(entries) == 1 {
			return r, nil
		}
		if err := errors.Join(err, r.End(ctx)); err != nil {
			return nil, fmt.Errorf("clean up after an earlier run %s: %w", id, err)
		}
	}
}

// read reads the record and reports whether there is one.
func (r *Run) read() bool {
	b, err := io.ReadAll(io.LimitReader(r.lock, 1<<16))
	return err == nil && json.Unmarshal(b, &r.record) == nil
}

// note records the VM of the container, before the container is mounted there.
func (r *Run) note(rec RunRecord) error {
	r.record = rec
	b, err := json.Marshal(rec)
	if err == nil {
		_, err = r.lock.WriteAt(b, 0)
	}
	if err != nil {
		return fmt.Errorf("run %s: %w", r.id, err)
	}
	return nil
}

// ID returns the id of the run and of its container.
func (r *Run) ID() string { return r.id }

// Dir returns the folder of the run. Files in it, such as a scratch, are removed when the run ends.
func (r *Run) Dir() string { return r.dir }

// VM returns the name of the VM that was last opened or started; empty before.
func (r *Run) VM() string { return r.record.VM }

// OpenVM opens the running VM called name, or the host itself for HostVM. When the run ends the VM keeps running; only
// the container is unmounted. If the VM already has a container with the run's id, the error matches ErrRunID and
// uvm.ErrClaimed. The caller must close the VM once the container is mounted.
func (r *Run) OpenVM(ctx context.Context, name string) (*uvm.UtilityVM, error) {
	vm, err := r.runs.open(ctx, name)
	if err != nil {
		return nil, err
	}
	// The run must not remove a container that was there before.
	if _, err = vm.FindClaim(r.id); err == nil {
		err = fmt.Errorf("container %q: %w: %w", r.id, ErrRunID, uvm.ErrClaimed)
	} else {
		err = r.note(RunRecord{VM: name})
	}
	if err != nil {
		return nil, errors.Join(err, vm.Close())
	}
	return vm, nil
}

// StartVM starts a VM with the name of the run, which is stopped when the run ends. o.Dir is ignored. If a VM of that
// name exists, the error matches ErrRunID. The caller must close the VM once the container is mounted.
func (r *Run) StartVM(ctx context.Context, o VMOptions) (*uvm.UtilityVM, error) {
	o.Dir = r.runs.VMDir(r.id)
	if _, err := os.Stat(o.Dir); err == nil {
		return nil, fmt.Errorf("%w: VM %q already exists", ErrRunID, r.id)
	}
	if err := r.note(RunRecord{VM: r.id, Own: true}); err != nil {
		return nil, err
	}
	vm, err := StartVM(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("start a VM: %w", err)
	}
	return vm, nil
}

// End ends the programs in the container and unmounts it, or stops the VM if the run started it, and removes the run's
// folder. If ctx has ended, it still has Runs.Grace for this; a VM of the run's own that does not stop in time is
// killed. What could not be cleaned up is left for Sweep. The Run must not be used afterwards.
func (r *Run) End(ctx context.Context) error {
	ctx, cancel := r.runs.cleanupContext(ctx)
	defer cancel()
	if err := span.Do(ctx, "strata.run.end", r.leaveVM); err != nil {
		return errors.Join(err, r.lock.Close())
	}
	return lockfile.DropFolder(r.lock)
}

// leaveVM unmounts the container of a run, or stops the VM if the run started it.
func (r *Run) leaveVM(ctx context.Context) error {
	if r.record.VM == "" {
		return nil
	}
	dir := r.runs.VMDir(r.record.VM)
	half, done := halfOf(ctx)
	defer done()
	vm, err := r.runs.open(half, r.record.VM)
	switch {
	case errors.Is(err, vmm.ErrGone), errors.Is(err, ErrNoVM):
		if r.record.Own {
			return RemoveVM(ctx, dir)
		}
		return nil
	case err != nil && r.record.Own: // no other container is in it
		r.runs.notice("%v: the VM is killed", err)
		return killNow(ctx, dir)
	case err != nil:
		return err
	case r.record.Own:
		err := StopVM(half, vm, dir, r.runs.Notice)
		if err != nil {
			r.runs.notice("%v: the VM is killed", err)
			return killNow(ctx, dir)
		}
		return nil
	}
	err = r.unmount(ctx, vm)
	if r.record.VM == HostVM && err == nil && len(vm.Claims()) == 0 {
		return forgetHost(ctx, vm, dir)
	}
	return errors.Join(err, vm.Close())
}

// lostTime bounds how long killed programs that are blocked on a lost volume may take to end.
const lostTime = 5 * time.Second

// unmount unmounts the container from a VM that keeps running. If a lost volume prevents that, it abandons the rest.
func (r *Run) unmount(ctx context.Context, vm *uvm.UtilityVM) error {
	m, err := layers.Open(vm, r.id)
	if err != nil {
		if errors.Is(err, uvm.ErrUnknownClaim) {
			err = nil
		}
		return err
	}
	lost := m.LostVolume(ctx)
	if lost == nil {
		return releaseContainer(ctx, vm, r.id, (*layers.Mounted).Release)
	}
	limited, cancel := context.WithTimeoutCause(ctx, lostTime, lost)
	defer cancel()
	if releaseContainer(limited, vm, r.id, (*layers.Mounted).Release) == nil {
		return nil
	}
	if err := m.Abandon(ctx); err != nil {
		return err
	}
	r.runs.notice("%v; container %s stays mounted in VM %s until the VM ends", lost, r.id, vm.ID())
	return nil
}

// halfOf returns a context with half of the time that ctx has left.
func halfOf(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(deadline)/2)
}
