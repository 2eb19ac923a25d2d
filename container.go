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

// Container is a container whose supervisor is this process. The caller must end it with Finish, also after a failure.
// Only Record and Update may be called concurrently with other methods.
type Container struct {
	cs      *Containers
	dir     string
	lock    *os.File
	resumed bool // see Again
	server  *supervise.Server
	log     *supervise.Log
	out     []io.Closer

	mu     sync.Mutex // the record may change while the program runs, see recorded
	record ContainerRecord
}

// Begin creates a container with the name and settings in r and makes this process its supervisor. If the name is
// invalid or in use, the error matches ErrContainerName.
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
			fmt.Errorf("%w: container %q already exists", ErrContainerName, r.Name))
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
			if _, err := cs.reap(ctx, r.Name, lock); err != nil {
				return nil, err
			}
			continue
		}
		return nil, errors.Join(fmt.Errorf("%w: container %q exists and has exited: strata rm %[2]s removes it",
			ErrContainerName, r.Name), lock.Close())
	}
}

// begin writes the record of a new container into an empty folder.
func (cs *Containers) begin(r ContainerRecord, lock *os.File) (*Container, error) {
	id := make([]byte, 32)
	_, _ = rand.Read(id) // never fails
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

// serve opens the log and the control socket. On failure it removes the container unless it was resumed.
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
	if c.resumed {
		return errors.Join(err, c.lock.Close())
	}
	return errors.Join(err, c.cs.drop(c.record.Name, c.lock))
}

// Resume makes this process the supervisor of a container that has exited, in order to start it again. If the
// container is running, the error matches ErrContainerRunning.
func (cs *Containers) Resume(ctx context.Context, name string) (*Container, error) {
	lock, err := cs.lock(ctx, name)
	if err != nil {
		return nil, err
	}
	c := &Container{cs: cs, dir: cs.dir(name), lock: lock, resumed: true}
	if c.record, err = readContainer(c.dir); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if c.record.State != ContainerExited {
		return nil, errors.Join(fmt.Errorf("container %s: its supervisor was killed: strata recover cleans up",
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

// Dir returns the folder of the container. Files in it, such as a scratch, live as long as the container.
func (c *Container) Dir() string { return c.dir }

// Record returns the container's record.
func (c *Container) Record() ContainerRecord {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.record
}

// Again reports whether the container existed before, that is, whether it came from Resume.
func (c *Container) Again() bool { return c.resumed }

// Update changes the record in memory. Started and Finish write it to disk.
func (c *Container) Update(change func(*ContainerRecord)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.record)
}

// Input returns the standard input that attached clients write for the program.
func (c *Container) Input() io.Reader { return c.server.Input() }

// Output returns the writer for a stream of the program, "stdout" or "stderr". What is written to it goes to attached
// clients, and to the log or, for a container without one (see ContainerRecord.Foreground), to to, which may be nil.
func (c *Container) Output(stream string, to io.Writer) io.Writer {
	if c.log != nil {
		s := c.log.Stream(stream)
		c.out = append(c.out, s)
		to = s
	}
	return c.server.Output(stream, to)
}

// Started records that the program p runs in the VM named vm. m runs further programs next to it; if m is a
// vmm.ContainerStatist it reports the container's resource usage, and if it is a vmm.ContainerController it pauses,
// resumes and updates the container.
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

// Ended tells attached clients and the control socket that the program has ended: from now on requests for it fail.
func (c *Container) Ended() { c.server.Ended() }

// Finish records how the container ended, after its run has ended, and stops being its supervisor. errText is an
// error besides the exit code, or empty. The container is removed if it has AutoRemove set or if its program was
// never started.
func (c *Container) Finish(code int, errText string) error {
	for _, s := range c.out {
		_ = s.Close() // see Log.Close
	}
	if c.log != nil {
		if err := c.log.Close(); err != nil && errText == "" {
			errText = err.Error()
		}
	}
	err := c.recordExit(code, errText)
	c.server.Finish(supervise.Exit{Code: code, Error: errText})
	return errors.Join(err, c.server.Close())
}

// recordExit writes the final state, or removes the container. It holds the lock for no longer than that:
// server.Finish and server.Close wait for requests that may need it.
func (c *Container) recordExit(code int, errText string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &c.record
	r.State, r.ExitCode, r.Error, r.Supervisor = ContainerExited, code, errText, 0
	r.Finished, r.Paused = time.Now().UTC(), false
	if r.AutoRemove || r.Started.IsZero() {
		return c.cs.drop(r.Name, c.lock)
	}
	return errors.Join(writeContainer(c.dir, *r), c.lock.Close())
}
