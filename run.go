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

// HostVM is the name of this Linux system itself among the VMs of a state directory; see OpenHost.
const HostVM = "host"

// ErrRunID says that the id of a run is used by another run, by another container of its VM, or cannot be one.
var ErrRunID = errors.New("the id of the run cannot be used")

// Runs are the runs of a state directory: each mounts one container, in a VM of its own or in one that runs,
// and takes all away at its end. A run is crash-safe: it has a folder in which it notes where its container
// is before it is there, and a lock that ends with its process. What a process that was killed left is
// found by the next Begin of the same id, and by Sweep. The zero value of every field but Dir will do.
// Methods may be called concurrently, by any number of processes.
type Runs struct {
	// Dir is the state directory: Dir/run/ID is the folder of a run, Dir/vms/NAME the state directory of a VM.
	Dir string
	// Open opens the VM called name, for a run or to take away what one left; nil: OpenVM, and OpenHost for HostVM.
	Open func(ctx context.Context, name string) (*uvm.UtilityVM, error)
	// Notice, where it is set, is called with what a user should read of and is no failure, such as a
	// VM that had to be ended without unmounting.
	Notice func(message string)
	// Cleanup is the time that the end of a run may take; 0: a minute. Grace is what is left of it from the
	// moment on at which the context of the call ends; 0: 10 s.
	Cleanup, Grace time.Duration
}

// RunRecord says where the container of a run is.
type RunRecord struct {
	VM  string `json:"vm,omitempty"`  // the VM with the container; empty before there is one
	Own bool   `json:"own,omitempty"` // whether the run started the VM, which ends with it
}

// Run is a run that has begun. It ends with End, also after a failure. Its methods may not be called concurrently.
type Run struct {
	runs   *Runs
	id     string
	dir    string
	lock   *os.File
	record RunRecord
}

// runFile is the file in a run's folder that holds its RunRecord. Its lock says that the run lives: what is in a
// folder whose lock is free was left by a run that was killed.
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

// cleanupContext returns a context for taking things away: ctx may have ended before, or may end meanwhile.
func (rs *Runs) cleanupContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return outlast(ctx, cmp.Or(rs.Cleanup, time.Minute), cmp.Or(rs.Grace, 10*time.Second))
}

// errNoTime is why a context of outlast ends.
var errNoTime = fmt.Errorf("the time for taking things away is over: %w", context.DeadlineExceeded)

// outlast returns a context that ends after limit, or already grace after ctx ended.
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

// lockTime is how long Begin waits for a lock: long enough for a Sweep that looks at the folder.
const lockTime = time.Second

// waitLock takes the lock of a file. It returns used when another process keeps it; other errors name the file.
func waitLock(ctx context.Context, path string, used error) (*os.File, error) {
	limited, cancel := context.WithTimeout(ctx, lockTime)
	defer cancel()
	lock, err := lockfile.Wait(limited, path, false)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = used
	}
	return lock, err
}

// lockFolder is waitLock for a file in a folder that is made where it does not exist.
func lockFolder(ctx context.Context, path string, used error) (*os.File, error) {
	for {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, err
		}
		lock, err := waitLock(ctx, path, used)
		if !errors.Is(err, os.ErrNotExist) { // else a Sweep has just removed the folder
			return lock, err
		}
	}
}

// Begin begins the run called id, which is also the id of its container: 1 to 63 letters, digits, '_', '.' or
// '-', a letter or digit first. What an earlier run of that id left is taken away first. An id that a run
// uses that lives is an error matching ErrRunID.
func (rs *Runs) Begin(ctx context.Context, id string) (*Run, error) {
	if err := checkDir(rs.Dir); err != nil {
		return nil, err
	}
	if !runID.MatchString(id) {
		return nil, fmt.Errorf("%w: %q: use 1 to 63 letters, digits, '_', '.' or '-', a letter or digit first", ErrRunID, id)
	}
	dir := rs.runDir(id)
	for {
		lock, err := lockFolder(ctx, filepath.Join(dir, runFile), fmt.Errorf("%w: another run is called %q", ErrRunID, id))
		if err != nil {
			return nil, err
		}
		r := &Run{runs: rs, id: id, dir: dir, lock: lock}
		entries, err := os.ReadDir(dir)
		if err == nil && !r.read() && len(entries) == 1 {
			return r, nil
		}
		if err := errors.Join(err, r.End(ctx)); err != nil {
			return nil, fmt.Errorf("take away what an earlier run of id %s left: %w", id, err)
		}
	}
}

// read reads the record and reports whether there is one.
func (r *Run) read() bool {
	b, err := io.ReadAll(io.LimitReader(r.lock, 1<<16))
	return err == nil && json.Unmarshal(b, &r.record) == nil
}

// note writes down in which VM the container will be, before it is.
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

// Dir returns the folder of the run: what is put into it, such as a scratch, is removed at the end of the run.
func (r *Run) Dir() string { return r.dir }

// VM returns the name of the VM that was opened or started last; empty before.
func (r *Run) VM() string { return r.record.VM }

// OpenVM opens the VM called name, which runs on after the run; at its end only the container is taken away.
// HostVM is this Linux system itself. A container of the run's id that is there already is an error
// matching ErrRunID and uvm.ErrClaimed. The caller closes the VM when the container is mounted.
func (r *Run) OpenVM(ctx context.Context, name string) (*uvm.UtilityVM, error) {
	vm, err := r.runs.open(ctx, name)
	if err != nil {
		return nil, err
	}
	// A container that is there already is not the run's to take away.
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

// StartVM starts a VM of the run's own, called as the run, which ends with it. Dir of the options is set.
// A VM of that name that is there already is an error matching ErrRunID. The caller closes the VM when the container
// is mounted.
func (r *Run) StartVM(ctx context.Context, o VMOptions) (*uvm.UtilityVM, error) {
	o.Dir = r.runs.VMDir(r.id)
	if _, err := os.Stat(o.Dir); err == nil {
		return nil, fmt.Errorf("%w: there is a VM %q already", ErrRunID, r.id)
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

// End ends what runs in the container, takes the container out of its VM, or stops the VM where it is the
// run's own, and removes the folder. It does so also when ctx has ended, within Runs.Grace; a VM of the
// run's own that does not stop in time is killed. What could not be taken away stays noted for Sweep. The Run
// is over in any case.
func (r *Run) End(ctx context.Context) error {
	ctx, cancel := r.runs.cleanupContext(ctx)
	defer cancel()
	if err := span.Do(ctx, "strata.run.end", r.leaveVM); err != nil {
		return errors.Join(err, r.lock.Close())
	}
	return lockfile.DropFolder(r.lock)
}

// leaveVM takes the container of a run out of its VM, or stops the VM when it is the run's own.
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
	case err != nil && r.record.Own: // nobody else has anything in it
		r.runs.notice("%v; it is killed", err)
		return killNow(ctx, dir)
	case err != nil:
		return err
	case r.record.Own:
		err := StopVM(half, vm, dir, r.runs.Notice)
		if err != nil {
			r.runs.notice("%v; it is killed", err)
			return killNow(ctx, dir)
		}
		return nil
	}
	err = r.takeAway(ctx, vm)
	if r.record.VM == HostVM && err == nil && len(vm.Claims()) == 0 {
		return forgetHost(ctx, vm, dir)
	}
	return errors.Join(err, vm.Close())
}

// lostTime is how long programs that wait for a lost volume, and are killed, may take to end.
const lostTime = 5 * time.Second

// takeAway takes the container out of a VM that runs on. What a lost volume keeps there is abandoned.
func (r *Run) takeAway(ctx context.Context, vm *uvm.UtilityVM) error {
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
	r.runs.notice("%v; what is left of container %s stays in VM %s until that ends", lost, r.id, vm.ID())
	return nil
}

// halfOf returns a context that ends when half of the time of ctx is over, and with ctx.
func halfOf(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(deadline)/2)
}
