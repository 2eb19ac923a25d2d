package strata

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/stratavm/strata/internal/lockfile"
	"github.com/stratavm/strata/internal/supervise"
)

var (
	// ErrNoContainer says that there is no container of a name or id.
	ErrNoContainer = errors.New("there is no such container")
	// ErrContainerName says that the name of a container cannot be used.
	ErrContainerName = errors.New("the name of the container cannot be used")
	// ErrContainerRunning says that a container runs.
	ErrContainerRunning = errors.New("the container runs")
	// ErrContainerStopped says that a container does not run.
	ErrContainerStopped = supervise.ErrEnded
)

// Containers are the containers of a state directory that have a life of their own: each has a folder, with a record
// that stays when its program has ended, the log of its output and what it wrote, until it is removed. Behind one
// that runs is a process, its supervisor, which has begun the [Run] of the same name and holds the folder's lock as
// long as it lives: see [Containers.Begin]. What one that was killed left is taken away by Sweep. Methods may
// be called concurrently, by any number of processes.
type Containers struct{ runs *Runs }

// Containers returns the containers of the state directory.
func (rs *Runs) Containers() *Containers { return &Containers{rs} }

func (cs *Containers) dir(name string) string { return filepath.Join(cs.runs.Dir, "containers", name) }

// List returns the records of all containers, the youngest first. One that cannot be read is an error that names it;
// the others are returned all the same.
func (cs *Containers) List() (all []ContainerRecord, err error) {
	if err := checkDir(cs.runs.Dir); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(cs.dir(""))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	errs := []error{err}
	for _, d := range entries {
		r, err := readContainer(cs.dir(d.Name()))
		switch {
		case errors.Is(err, fs.ErrNotExist): // it is just being made, or removed
		case err != nil:
			errs = append(errs, err)
		default:
			all = append(all, r)
		}
	}
	slices.SortStableFunc(all, func(a, b ContainerRecord) int {
		return cmp.Or(b.Created.Compare(a.Created), strings.Compare(a.Name, b.Name))
	})
	return all, errors.Join(errs...)
}

// Find returns the record of the container with a name, or an id, or the beginning of the id of no other. The error
// matches ErrNoContainer where there is none, and ErrContainerRecord where the one of that name cannot be read: then
// the record has the name only.
func (cs *Containers) Find(ref string) (ContainerRecord, error) {
	if runID.MatchString(ref) {
		r, err := readContainer(cs.dir(ref))
		if errors.Is(err, ErrContainerRecord) {
			return ContainerRecord{Name: ref}, err
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return r, err
		}
	}
	all, err := cs.List()
	var found []ContainerRecord
	for _, r := range all {
		if ref != "" && strings.HasPrefix(r.ID, ref) {
			found = append(found, r)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return ContainerRecord{}, fmt.Errorf("container %.70q: %d ids begin so: give more of it", ref, len(found))
	case err != nil && ref != "":
		return ContainerRecord{}, err
	}
	return ContainerRecord{}, fmt.Errorf("container %.70q: %w", ref, ErrNoContainer)
}

// Running reports whether the supervisor of a container lives. After an error, which its lock could not be looked at
// for, it may.
func (cs *Containers) Running(name string) (bool, error) {
	running, err := lockfile.Held(filepath.Join(cs.dir(name), containerLock))
	if err != nil {
		err = fmt.Errorf("container %s: whether it runs: %w", name, err)
	}
	return running, err
}

// ContainerControl talks to the supervisor of a container that runs.
type ContainerControl = supervise.Client

// Control returns what talks to the supervisor of a container. Where there is none its calls fail.
func (cs *Containers) Control(name string) *ContainerControl {
	return supervise.NewClient(cs.dir(name))
}

// ContainerLogLine is a line of a container's log.
type ContainerLogLine = supervise.Line

// ContainerLogOptions says which lines are read.
type ContainerLogOptions struct {
	Tail         int       // how many from the end; negative: all
	Since, Until time.Time // zero: no bound
	Follow       bool      // wait for more, as long as the container runs
}

// Logs calls each with the lines of a container's log, oldest first, until it fails or ctx ends.
func (cs *Containers) Logs(ctx context.Context, name string, o ContainerLogOptions,
	each func(ContainerLogLine) error) error {
	lo := supervise.LogOptions{Tail: o.Tail, Since: o.Since, Until: o.Until}
	if o.Follow {
		lo.Ended = func() bool {
			running, err := cs.Running(name)
			return err == nil && !running
		}
	}
	return supervise.ReadLog(ctx, cs.dir(name), lo, each)
}

// lock takes the lock of a container that is there. It waits a moment for one whose end is being noted. The error
// matches ErrContainerRunning.
func (cs *Containers) lock(ctx context.Context, name string) (*os.File, error) {
	path := filepath.Join(cs.dir(name), containerLock)
	if _, err := os.Stat(path); err != nil { // Wait would make one
		if errors.Is(err, fs.ErrNotExist) {
			err = ErrNoContainer
		}
		return nil, fmt.Errorf("container %s: %w", name, err)
	}
	lock, err := waitLock(ctx, path, ErrContainerRunning)
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNoContainer
	}
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", name, err)
	}
	return lock, nil
}

// Remove removes a container that does not run, with its log and what it wrote. The error matches
// ErrContainerRunning when it does.
func (cs *Containers) Remove(ctx context.Context, name string) error {
	lock, err := cs.lock(ctx, name)
	if err != nil {
		return err
	}
	if err := cs.settle(ctx, name); err != nil {
		return errors.Join(err, lock.Close())
	}
	return cs.drop(name, lock)
}

// drop removes the folder of a container whose lock is held: the record first, so that it is there no more.
func (cs *Containers) drop(name string, lock *os.File) error {
	err := os.Remove(filepath.Join(cs.dir(name), containerFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		err = errors.Join(err, lock.Close())
	} else {
		err = lockfile.DropFolder(lock)
	}
	if err != nil {
		return fmt.Errorf("remove container %s: %w", name, err)
	}
	return nil
}

// settle takes away what the run of a container left that was killed.
func (cs *Containers) settle(ctx context.Context, name string) error {
	if _, err := os.Stat(cs.runs.runDir(name)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	r, err := cs.runs.Begin(ctx, name)
	if err != nil {
		return err
	}
	return r.End(ctx)
}

// killedCode is the exit code of a container whose supervisor was killed: the program is, too.
const killedCode = 137

// Sweep finds the containers whose supervisor was killed: what still runs of them is ended, their runs are taken
// away, and those that are to stay are noted as ended. It returns their names, but not those whose
// run was taken away already and that are gone. What cannot be taken away is an error
// that names it, and is tried again the next time.
func (cs *Containers) Sweep(ctx context.Context) (names []string, err error) {
	if err := checkDir(cs.runs.Dir); err != nil {
		return nil, err
	}
	if _, err := os.Stat(cs.dir("")); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	file := func(d fs.DirEntry) string {
		if !d.IsDir() || !runID.MatchString(d.Name()) {
			return ""
		}
		// Most have ended in order: their locks are left alone.
		if r, err := readContainer(cs.dir(d.Name())); err == nil && r.State == ContainerExited {
			return ""
		}
		return filepath.Join(d.Name(), containerLock)
	}
	err = lockfile.Sweep(ctx, cs.dir(""), file, func(name string, lock *os.File) error {
		if lock == nil { // Begin makes the folder first, then the lock
			_ = os.Remove(cs.dir(name))
			return nil
		}
		done, err := cs.bury(ctx, name, lock)
		if done {
			names = append(names, name)
		}
		return err
	})
	return names, err
}

// bury does what a supervisor that was killed did not come to do, and closes its lock.
func (cs *Containers) bury(ctx context.Context, name string, lock *os.File) (done bool, err error) {
	r, err := readContainer(cs.dir(name))
	if errors.Is(err, ErrContainerRecord) || err == nil && r.State == ContainerExited {
		return false, errors.Join(err, lock.Close())
	}
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return false, errors.Join(err, lock.Close())
	}
	_, serr := os.Stat(cs.runs.runDir(name))
	if err := cs.settle(ctx, name); err != nil {
		return false, errors.Join(fmt.Errorf("container %s, whose supervisor was killed: %w", name, err), lock.Close())
	}
	// One that was never started was promised to nobody.
	if missing || r.AutoRemove || r.Started.IsZero() {
		return !missing && (serr == nil || !r.Foreground), cs.drop(name, lock)
	}
	r.State, r.ExitCode, r.Finished, r.Supervisor = ContainerExited, killedCode, time.Now().UTC(), 0
	r.Error = "its supervisor was killed, and the program with it"
	return true, errors.Join(writeContainer(cs.dir(name), r), lock.Close())
}
