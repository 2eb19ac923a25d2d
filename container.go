package strata

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/stratavm/strata/internal/supervise"
	"github.com/stratavm/strata/vmm"
)

// Container is a container of which this process is the supervisor. It ends with Finish, also after a failure. Its
// methods may not be called concurrently.
type Container struct {
	cs     *Containers
	dir    string
	lock   *os.File
	again  bool
	server *supervise.Server
	log    *supervise.Log
	out    []io.Closer

	mu     sync.Mutex // others change the record while the program runs
	record ContainerRecord
}

// Begin makes a container, of which r says the name and what else is known, and this process its supervisor. A name
// that is used is an error matching ErrContainerName.
func (cs *Containers) Begin(ctx context.Context, r ContainerRecord) (*Container, error) {
	if err := checkDir(cs.runs.Dir); err != nil {
		return nil, err
	}
	if !runID.MatchString(r.Name) {
		return nil, fmt.Errorf("%w: %q: use 1 to 63 letters, digits, '_', '.' or '-', a letter or digit first",
			ErrContainerName, r.Name)
	}
	dir := cs.dir(r.Name)
	for {
		lock, err := lockFolder(ctx, filepath.Join(dir, containerLock),
			fmt.Errorf("%w: a container is called %q", ErrContainerName, r.Name))
		if err != nil {
			return nil, err
		}
		old, err := readContainer(dir)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return cs.begin(r, lock)
		case err != nil:
			return nil, errors.Join(err, lock.Close())
		case old.State != ContainerExited: // its supervisor was killed
			if _, err := cs.bury(ctx, r.Name, lock); err != nil {
				return nil, err
			}
			continue
		}
		return nil, errors.Join(fmt.Errorf("%w: a container is called %q, which has ended: strata rm %[2]s removes it",
			ErrContainerName, r.Name), lock.Close())
	}
}

// begin writes the record of a container in an empty folder.
func (cs *Containers) begin(r ContainerRecord, lock *os.File) (*Container, error) {
	id := make([]byte, 32)
	_, _ = rand.Read(id) // it does not fail
	r.Version, r.ID, r.Created = containerVersion, hex.EncodeToString(id), time.Now().UTC()
	r.State, r.Supervisor = ContainerCreated, os.Getpid()
	c := &Container{cs: cs, dir: cs.dir(r.Name), lock: lock, record: r}
	if err := writeContainer(c.dir, r); err != nil {
		return nil, errors.Join(err, cs.drop(r.Name, lock))
	}
	if err := c.serve(); err != nil {
		return nil, err
	}
	return c, nil
}

// serve opens the log and the control socket. After a failure a container that was made just now is gone.
func (c *Container) serve() (err error) {
	if !c.record.Foreground {
		c.log, err = supervise.OpenLog(c.dir)
	}
	if err == nil {
		c.server, err = supervise.Listen(c.dir)
	}
	if err == nil {
		return nil
	}
	if c.log != nil {
		err = errors.Join(err, c.log.Close())
	}
	if c.again {
		return errors.Join(err, c.lock.Close())
	}
	return errors.Join(err, c.cs.drop(c.record.Name, c.lock))
}

// Resume makes this process the supervisor of a container that has ended, to start it again. One that runs is an error
// matching ErrContainerRunning.
func (cs *Containers) Resume(ctx context.Context, name string) (*Container, error) {
	lock, err := cs.lock(ctx, name)
	if err != nil {
		return nil, err
	}
	c := &Container{cs: cs, dir: cs.dir(name), lock: lock, again: true}
	if c.record, err = readContainer(c.dir); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if c.record.State != ContainerExited {
		return nil, errors.Join(fmt.Errorf("container %s: its supervisor was killed: strata recover takes away what it left",
			name), lock.Close())
	}
	if err := c.serve(); err != nil {
		return nil, err
	}
	c.record.State, c.record.Supervisor = ContainerCreated, os.Getpid()
	if err := writeContainer(c.dir, c.record); err != nil {
		return nil, errors.Join(err, lock.Close(), c.log.Close(), c.server.Close())
	}
	return c, nil
}

// Dir returns the folder of the container: what is put into it, such as a scratch, stays as long as the container.
func (c *Container) Dir() string { return c.dir }

// Record returns the container's record.
func (c *Container) Record() ContainerRecord {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.record
}

// Again reports whether the container was there before, and its record says what was made then.
func (c *Container) Again() bool { return c.again }

// Update changes the record. It is written with the next step of the container's life.
func (c *Container) Update(change func(*ContainerRecord)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.record)
}

// Input is what attached clients write for the program.
func (c *Container) Input() io.Reader { return c.server.Input() }

// Output returns the writer for a stream of the program, "stdout" or "stderr": to, where it is not nil, the log, where
// the container has one, and the clients that are attached.
func (c *Container) Output(stream string, to io.Writer) io.Writer {
	if c.log != nil {
		s := c.log.Stream(stream)
		c.out = append(c.out, s)
		to = s
	}
	return c.server.Output(stream, to)
}

// Started notes that the program runs, in the VM of that name. m starts others beside it, and is asked what the
// container uses where it is a vmm.ContainerStatist, and to pause and change it where it is a vmm.ContainerController.
func (c *Container) Started(vm string, p vmm.Process, spec vmm.ProcessSpec, m Runner) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &c.record
	r.Paused = false
	r.State, r.VM, r.Started, r.Supervisor = ContainerRunning, vm, time.Now().UTC(), os.Getpid()
	r.ExitCode, r.OOMKilled, r.Error, r.Finished = 0, false, "", time.Time{}
	r.Process.keep(spec)
	program := supervise.Program{Process: p, Exec: m.Exec, Base: spec}
	if s, ok := m.(vmm.ContainerStatist); ok {
		program.Stats = func(ctx context.Context) (vmm.ContainerStats, error) {
			return s.ContainerStats(ctx, spec.ContainerID)
		}
	}
	if ctl, ok := m.(vmm.ContainerController); ok {
		program.Control = recorded{ctl, c, make(chan struct{}, 1)}
	}
	c.server.Started(program)
	return writeContainer(c.dir, c.record)
}

// Ended says that the program does not run any more: nothing can be done to it from here on.
func (c *Container) Ended() { c.server.Ended() }

// Finish notes how the container ended, once its run is over, and gives up being the supervisor. words says what went
// wrong besides, or is empty. A container that is not to stay is removed, and so is one whose program was never
// started.
func (c *Container) Finish(code int, words string) error {
	for _, s := range c.out {
		_ = s.Close() // see Log.Close
	}
	if c.log != nil {
		if err := c.log.Close(); err != nil && words == "" {
			words = err.Error()
		}
	}
	err := c.over(code, words)
	c.server.Finish(supervise.Exit{Code: code, Error: words})
	return errors.Join(err, c.server.Close())
}

// over notes the end.
func (c *Container) over(code int, words string) error {
	c.mu.Lock() // not for as long as the server, which may wait for it, has to end
	defer c.mu.Unlock()
	r := &c.record
	r.State, r.ExitCode, r.Error, r.Supervisor = ContainerExited, code, words, 0
	r.Finished, r.Paused = time.Now().UTC(), false
	if r.AutoRemove || r.Started.IsZero() {
		return c.cs.drop(r.Name, c.lock)
	}
	return errors.Join(writeContainer(c.dir, *r), c.lock.Close())
}
