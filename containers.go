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
	// ErrNoContainer says that no container has the name or id.
	ErrNoContainer = errors.New("there is no such container")
	// ErrContainerName says that a container's name is invalid or already in use.
	ErrContainerName = errors.New("the name of the container cannot be used")
	// ErrContainerRunning says that the container is running.
	ErrContainerRunning = errors.New("the container runs")
	// ErrContainerStopped says that the container is not running.
	ErrContainerStopped = supervise.ErrEnded
)

// Containers manages the containers of a state directory that outlive the command that started them. Each has a folder
// with its record, the log of its output and what it wrote, until it is removed. A running container has a supervisor
// process, which has begun the [Run] of the same name and holds the folder's lock as long as it lives: see
// [Containers.Begin]. Sweep cleans up after supervisors that were killed. Methods may be called concurrently, by any
// number of processes.
type Containers struct{ runs *Runs }

// Containers returns the manager of the containers in rs.Dir.
func (rs *Runs) Containers() *Containers { return &Containers{rs} }

func (cs *Containers) dir(name string) string { return filepath.Join(cs.runs.Dir, "containers", name) }

// List returns the records of all containers, newest first. If a record cannot be read, the error names it and the
// other records are still returned.
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
		case errors.Is(err, fs.ErrNotExist): // being created or removed
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

// Find returns the record of the container with the given name, id or unique prefix of an id. The error matches
// ErrNoContainer if there is none, and ErrContainerRecord if the record of that name cannot be read; the returned
// record then has only the name.
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
		return ContainerRecord{}, fmt.Errorf("container %.70q: %d ids have this prefix: give more of it", ref, len(found))
	case err != nil && ref != "":
		return ContainerRecord{}, err
	}
	return ContainerRecord{}, fmt.Errorf("container %.70q: %w", ref, ErrNoContainer)
}

// Running reports whether the supervisor of a container lives. If the error is not nil, it is not known.
func (cs *Containers) Running(name string) (bool, error) {
	running, err := lockfile.Held(filepath.Join(cs.dir(name), containerLock))
	if err != nil {
		err = fmt.Errorf("find out whether container %s is running: %w", name, err)
	}
	return running, err
}

// ContainerControl is a client of the supervisor of a running container.
type ContainerControl = supervise.Client

// Control returns a client of the container's supervisor. Its calls fail while the container is not running.
func (cs *Containers) Control(name string) *ContainerControl {
	return supervise.NewClient(cs.dir(name))
}

// ContainerLogLine is one line of a container's log.
type ContainerLogLine = supervise.Line

// ContainerLogOptions selects the lines that Logs reads.
type ContainerLogOptions struct {
	Tail         int       // number of lines from the end; negative: all
	Since, Until time.Time // zero: no bound
	Follow       bool      // wait for further lines until the container ends
}

// Logs calls each for every selected line of a container's log, oldest first. It stops when each returns an error or
// ctx ends.
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

// lock takes the lock of an existing container. It waits up to lockTime for a supervisor that is about to finish, then
// the error matches ErrContainerRunning.
func (cs *Containers) lock(ctx context.Context, name string) (*os.File, error) {
	path := filepath.Join(cs.dir(name), containerLock)
	if _, err := os.Stat(path); err != nil { // waitLock would create it
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

// Remove removes a container that is not running, with its log and what it wrote. If it is running, the error matches
// ErrContainerRunning.
func (cs *Containers) Remove(ctx context.Context, name string) error {
	lock, err := cs.lock(ctx, name)
	if err != nil {
		return err
	}
	if err := cs.endRun(ctx, name); err != nil {
		return errors.Join(err, lock.Close())
	}
	return cs.drop(name, lock)
}

// drop removes the folder of a container whose lock is held. The record goes first: without it the container is gone.
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

// endRun cleans up after the run of a container whose supervisor was killed.
func (cs *Containers) endRun(ctx context.Context, name string) error {
	if _, err := os.Stat(cs.runs.runDir(name)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	r, err := cs.runs.Begin(ctx, name)
	if err != nil {
		return err
	}
	return r.End(ctx)
}

// killedCode is the exit code recorded for a container whose supervisor was killed: 128 + SIGKILL.
const killedCode = 137

// Sweep cleans up after supervisors that were killed: it ends what still runs of their containers and ends their runs.
// Containers with AutoRemove, or whose program was never started, are removed; the others are recorded as exited. It
// returns the names of the containers, except foreground containers that are removed and whose run had been cleaned up
// before. Failures are returned joined, name the container, and are retried by the next Sweep.
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
		// Leave the locks of containers that exited normally alone.
		if r, err := readContainer(cs.dir(d.Name())); err == nil && r.State == ContainerExited {
			return ""
		}
		return filepath.Join(d.Name(), containerLock)
	}
	err = lockfile.Sweep(ctx, cs.dir(""), file, func(name string, lock *os.File) error {
		if lock == nil { // Begin creates the folder first, then the lock
			_ = os.Remove(cs.dir(name))
			return nil
		}
		done, err := cs.reap(ctx, name, lock)
		if done {
			names = append(names, name)
		}
		return err
	})
	return names, err
}

// reap does what the killed supervisor of a container would have done at its end, and closes its lock. done says
// whether Sweep reports the container.
func (cs *Containers) reap(ctx context.Context, name string, lock *os.File) (done bool, err error) {
	r, err := readContainer(cs.dir(name))
	if errors.Is(err, ErrContainerRecord) || err == nil && r.State == ContainerExited {
		return false, errors.Join(err, lock.Close())
	}
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return false, errors.Join(err, lock.Close())
	}
	_, serr := os.Stat(cs.runs.runDir(name))
	if err := cs.endRun(ctx, name); err != nil {
		return false, errors.Join(fmt.Errorf("container %s, whose supervisor was killed: %w", name, err), lock.Close())
	}
	// A container that was never started was never reported to the user as created.
	if missing || r.AutoRemove || r.Started.IsZero() {
		return !missing && (serr == nil || !r.Foreground), cs.drop(name, lock)
	}
	r.State, r.ExitCode, r.Finished, r.Supervisor = ContainerExited, killedCode, time.Now().UTC(), 0
	r.Error = "its supervisor was killed, and the program with it"
	return true, errors.Join(writeContainer(cs.dir(name), r), lock.Close())
}
