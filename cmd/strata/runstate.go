package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/internal/lockfile"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// cleanup is the time that taking away what one run made may take.
const cleanup = 60 * time.Second

// runFile is the file in a run's folder that says what the run made elsewhere. Its lock says that the
// run lives: what is in a folder whose lock is free, a run left that was killed.
const runFile = "run.json"

// runState is what one run has made and has to take away: its folder, and what runFile says.
type runState struct {
	id, dir string
	lock    *os.File // nil in a dry run, which makes nothing
	runRecord
}

// runRecord is the content of runFile. It is written before what it speaks of is made.
type runRecord struct {
	VM  string `json:"vm,omitempty"`  // in which the container is
	Own bool   `json:"own,omitempty"` // whether the run started the VM
}

// runDir is where run keeps the scratch and the imported layers of a container; "" for the folder of all.
func (e *env) runDir(cmd *cli.Command, id string) (string, error) {
	state, err := e.stateDir(cmd)
	return filepath.Join(state, "run", id), err
}

// beginRun makes the folder of a run. What an earlier run of the same id left is taken away first.
func (e *env) beginRun(ctx context.Context, cmd *cli.Command, id string) (*runState, error) {
	dir, err := e.runDir(cmd, id)
	if err != nil || cmd.Bool("dry-run") {
		return &runState{id: id, dir: dir}, err
	}
	for {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("run %s: %w", id, err)
		}
		limited, cancel := context.WithTimeout(ctx, patience)
		lock, err := lockfile.Wait(limited, filepath.Join(dir, runFile), false)
		cancel()
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // somebody who sweeps has just removed the folder
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			return nil, fmt.Errorf("container %q: another run uses this id; choose another --id", id)
		case err != nil:
			return nil, fmt.Errorf("run %s: %w", id, err)
		}
		r := &runState{id: id, dir: dir, lock: lock}
		entries, err := os.ReadDir(dir)
		if err == nil && !r.read() && len(entries) == 1 {
			return r, nil
		}
		if err := errors.Join(err, e.endRun(ctx, cmd, r)); err != nil {
			return nil, fmt.Errorf("take away what an earlier run of id %s left: %w", id, err)
		}
	}
}

// read reads the record and reports whether there is one.
func (r *runState) read() bool {
	b, err := io.ReadAll(io.LimitReader(r.lock, 1<<16))
	return err == nil && json.Unmarshal(b, &r.runRecord) == nil
}

// note writes down in which VM the container will be.
func (r *runState) note(vm string, own bool) error {
	r.VM, r.Own = vm, own
	if r.lock == nil {
		return nil
	}
	b, err := json.Marshal(r.runRecord)
	if err == nil {
		_, err = r.lock.WriteAt(b, 0)
	}
	if err != nil {
		return fmt.Errorf("run %s: %w", r.id, err)
	}
	return nil
}

// endRun takes away what a run made, this one or one that was killed. It has its own time, since ctx
// may have ended. What could not be taken away stays noted, for strata recover.
func (e *env) endRun(ctx context.Context, cmd *cli.Command, r *runState) error {
	if r.lock == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanup)
	defer cancel()
	if err := e.leaveVM(ctx, cmd, r); err != nil {
		return errors.Join(err, r.lock.Close())
	}
	entries, err := os.ReadDir(r.dir)
	for _, d := range entries {
		if d.Name() != runFile {
			err = errors.Join(err, os.RemoveAll(filepath.Join(r.dir, d.Name())))
		}
	}
	if err != nil {
		return errors.Join(err, r.lock.Close())
	}
	err = lockfile.Drop(r.lock)
	_ = os.Remove(r.dir) // when it is not empty, another run has just taken it
	return err
}

// leaveVM takes the container of a run out of its VM, or stops the VM when it is the run's own.
func (e *env) leaveVM(ctx context.Context, cmd *cli.Command, r *runState) error {
	if r.VM == "" {
		return nil
	}
	dir, err := e.vmDir(cmd, r.VM)
	if err != nil {
		return err
	}
	half, done := context.WithTimeout(ctx, cleanup/2)
	defer done()
	vm, err := e.takeUp(half, cmd, r.VM)
	switch {
	case errors.Is(err, vmm.ErrGone), errors.Is(err, strata.ErrNoVM):
		if r.Own {
			return strata.RemoveVM(ctx, dir)
		}
		return nil
	case err != nil && r.Own: // nobody else has anything in it
		e.say("strata: %v; it is ended the hard way", err)
		return strata.KillVM(ctx, dir)
	case err != nil:
		return err
	case r.Own:
		return e.stop(ctx, vm, dir, time.Now().Add(cleanup/2))
	}
	m, err := layers.Open(vm, r.id)
	if err == nil {
		// What the program left running in the background ends with it.
		err = m.EndPrograms(ctx)
		if err == nil {
			err = m.Release(ctx)
		}
	} else if errors.Is(err, uvm.ErrUnknownClaim) {
		err = nil
	}
	if r.VM == hostVM && err == nil && len(vm.Claims()) == 0 {
		return e.forgetHost(ctx, vm, dir)
	}
	return errors.Join(err, vm.Close())
}

// forgetHost removes the books of this system itself when nothing is in them.
func (e *env) forgetHost(ctx context.Context, vm *uvm.UtilityVM, dir string) error {
	if err := vm.Shutdown(ctx); err != nil {
		return err
	}
	if err := strata.RemoveVM(ctx, dir); !errors.Is(err, strata.ErrRunning) { // somebody has just mounted something
		return err
	}
	return nil
}

// sweepRuns takes away what runs that were killed left, of those that which picks, and gives their ids.
func (e *env) sweepRuns(ctx context.Context, cmd *cli.Command, which func(runRecord) bool) (ids []string, err error) {
	all, err := e.runDir(cmd, "")
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(all)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	errs := []error{err}
	for _, d := range entries {
		if !d.IsDir() || !validName.MatchString(d.Name()) {
			continue
		}
		r := &runState{id: d.Name(), dir: filepath.Join(all, d.Name())}
		r.lock, err = lockfile.Try(filepath.Join(r.dir, runFile), false, 0)
		if errors.Is(err, fs.ErrNotExist) {
			if !cmd.Bool("dry-run") {
				_ = os.Remove(r.dir) // without the file it is empty; a run that begins makes it again
			}
			continue
		}
		if err != nil || r.lock == nil {
			errs = append(errs, err)
			continue
		}
		r.read()
		if !which(r.runRecord) {
			errs = append(errs, r.lock.Close())
			continue
		}
		if cmd.Bool("dry-run") {
			errs, ids = append(errs, r.lock.Close()), append(ids, r.id)
			continue
		}
		if err := e.endRun(ctx, cmd, r); err != nil {
			errs = append(errs, fmt.Errorf("take away what the interrupted run %s left: %w", r.id, err))
			continue
		}
		ids = append(ids, r.id)
	}
	return ids, errors.Join(errs...)
}

// sweepBefore sweeps on the way to something else, which goes on whatever becomes of it.
func (e *env) sweepBefore(ctx context.Context, cmd *cli.Command, which func(runRecord) bool) {
	ids, err := e.sweepRuns(ctx, cmd, which)
	for _, id := range ids {
		e.say("strata: what the interrupted run %s left is taken away", id)
	}
	if err != nil {
		e.say("strata: %v; to try again: strata recover", err)
	}
}
