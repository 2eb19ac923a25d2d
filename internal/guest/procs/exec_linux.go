package procs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// Create implements gcsserver.Runtime.
func (t *Table) Create(ctx context.Context, id string, config gcs.ContainerConfig) error {
	spec := config.OciSpecification
	if spec == nil || spec.Root == nil || spec.Root.Path == "" {
		return fmt.Errorf("container %s: its document names no root: %w", id, gcsserver.ErrInvalid)
	}
	if strings.ContainsAny(id, "/\x00") || len(id) > 255 {
		return fmt.Errorf("container id %q: %w", id, gcsserver.ErrInvalid)
	}
	root := spec.Root.Path
	if !filepath.IsAbs(root) {
		root = filepath.Join(config.OciBundlePath, root)
	}
	if err := t.roots.CheckPath(root); err != nil {
		return err
	}
	var temporary []specs.Mount
	if !whole(spec) {
		var err error
		if temporary, err = temporaryMounts(spec.Mounts); err != nil {
			return fmt.Errorf("container %s: %w", id, err)
		}
	}
	hostname := spec.Hostname
	if hostname == "" {
		hostname = id
	}
	if len(hostname) > 64 {
		hostname = hostname[:64]
	}
	c := &container{id: id, root: root, hostname: hostname, name: config.StrataInstance, temporary: temporary,
		ended: make(chan struct{})}
	if whole(spec) {
		c.doc = spec
	}
	if spec.Process != nil && len(spec.Process.Args) > 0 {
		c.first = &gcsserver.Process{Container: id}
		c.first.Describe(spec.Process)
	}
	return t.enter(ctx, c)
}

// enter registers a container. It replaces a container of the same id in which nothing runs, if that has another root
// or if c has an instance name; otherwise the id is taken, which is an error.
func (t *Table) enter(ctx context.Context, c *container) error {
	for {
		old := t.known(c.id)
		switch {
		case old == nil:
		case old.root == c.root && c.name == "":
			return fmt.Errorf("container %s: %w", c.id, gcsserver.ErrContainer)
		case old.retire():
		case c.name == "":
			return fmt.Errorf("container %s runs in the root %s: %w", c.id, old.root, gcsserver.ErrBusy)
		default:
			return fmt.Errorf("container %s: a program runs in it: %w", c.id, gcsserver.ErrContainer)
		}
		if c.name != "" {
			if err := t.freeElsewhere(ctx, c.id); err != nil {
				return err
			}
		}
		t.mu.Lock()
		now := t.containers[c.id]
		if now == old || now == nil {
			t.containers[c.id] = c
			now = c
		}
		t.mu.Unlock()
		if old != nil {
			old.end()
		}
		if now == c {
			return nil
		}
	}
}

// forget removes a container from the table.
func (t *Table) forget(c *container) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.containers[c.id] == c {
		delete(t.containers, c.id)
	}
}

// known returns the container of an id, or nil.
func (t *Table) known(id string) *container {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.containers[id]
}

func (t *Table) container(id string) (*container, error) {
	if c := t.known(id); c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("container %s: %w", id, gcsserver.ErrNoContainer)
}

// Exec implements gcsserver.Runtime.
func (t *Table) Exec(_ context.Context, p gcsserver.Process) (uint32, error) {
	var c *container
	if p.Container != "" {
		var err error
		if c, err = t.container(p.Container); err != nil {
			return 0, err
		}
		if err := c.begin(&p); err != nil {
			return 0, err
		}
	}
	pr, err := t.start(c, p)
	if c != nil && p.First {
		c.begun(pr, err)
	}
	if err != nil {
		return 0, err
	}
	return pr.id, nil
}

// start starts a process in a container, or in the VM itself.
func (t *Table) start(c *container, p gcsserver.Process) (*process, error) {
	if err := gcs.CheckArguments(p.Args, p.Env); err != nil {
		return nil, err
	}
	if p.Terminal && p.Streams[2] != nil {
		p.Streams[2].Close()
		p.Streams[2] = nil
	}
	pr := t.procs.add(p)
	pipes, err := newPipes(p.Streams)
	if err != nil {
		t.procs.remove(pr)
		return nil, err
	}
	// In a container the directory is created within the root, so that no symbolic link leads out of it.
	cmd := command{Args: p.Args, Env: p.Env, Dir: p.Dir, MakeDir: p.MakeDir && c != nil, User: p.User, Groups: p.Groups,
		Terminal: p.Terminal, Width: p.Width, Height: p.Height}
	var master *os.File
	if c != nil {
		master, err = c.exec(t, pr, cmd, pipes, p.First)
	} else {
		master, err = t.execHere(pr, cmd, pipes)
	}
	if err != nil {
		pipes.close()
		t.procs.remove(pr)
		return nil, err
	}
	if p.Terminal {
		pipes.useMaster(master)
	} else {
		pipes.closeChild()
	}
	pipes.relay(pr, p.Terminal)
	return pr, nil
}

// execHere starts a process in the VM itself.
func (t *Table) execHere(p *process, cmd command, pipes *stdioPipes) (*os.File, error) {
	ready := make(chan struct{})
	var pid int
	var master *os.File
	var err error
	ownErr := onOwnThread(func() {
		pid, master, err = t.spawn.execute(cmd, pipes.child, func(st syscall.WaitStatus, _ bool) {
			go func() {
				<-ready
				t.procs.finish(p, exitCode(st))
			}()
		})
	})
	err = errors.Join(ownErr, err)
	if err == nil && master != nil {
		master, err = pollable(master)
	}
	if err == nil {
		p.started(func(sig syscall.Signal) error { return t.spawn.signal(pid, sig) }, master)
	}
	close(ready)
	return master, err
}

// Wait implements gcsserver.Runtime.
func (t *Table) Wait(ctx context.Context, container string, pid uint32) (int, error) {
	p, err := t.procs.get(container, pid)
	if err != nil {
		return 0, err
	}
	return waitExit(ctx, p)
}

// Signal implements gcsserver.Runtime.
func (t *Table) Signal(_ context.Context, container string, pid uint32, signal int) error {
	p, err := t.procs.get(container, pid)
	if err != nil {
		return err
	}
	return p.signal(signal)
}

// Resize implements gcsserver.Runtime.
func (t *Table) Resize(_ context.Context, container string, pid uint32, width, height uint16) error {
	p, err := t.procs.get(container, pid)
	if err != nil {
		return err
	}
	return p.resize(width, height)
}

// Processes implements gcsserver.Runtime.
func (t *Table) Processes(container string) ([]uint32, error) {
	if container != "" {
		if _, err := t.container(container); err != nil {
			return nil, err
		}
	}
	var ids []uint32
	for _, p := range t.procs.running(container, false) {
		ids = append(ids, p.id)
	}
	return ids, nil
}

// Stop implements gcsserver.Runtime.
func (t *Table) Stop(_ context.Context, container string, signal int) error {
	c, err := t.container(container)
	if err != nil {
		return err
	}
	c.asked(signal)
	for _, p := range t.procs.running(container, false) {
		_ = p.signal(signal) // one that has just ended is no error
	}
	return nil
}

// Ended implements gcsserver.Runtime.
func (t *Table) Ended(ctx context.Context, container string) (string, error) {
	c, err := t.container(container)
	if err != nil {
		return "", err
	}
	select {
	case <-c.ended:
		return c.how()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// Delete implements gcsserver.Runtime. What is mounted stays mounted.
func (t *Table) Delete(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, waitTime)
	defer cancel()
	c, err := t.container(id)
	if err != nil {
		return t.endOthers(ctx, id)
	}
	c.asked(int(syscall.SIGKILL))
	for retired := false; !retired; retired = c.retire() { // something may have been started meanwhile
		if err := c.stop(ctx); err != nil {
			return err
		}
	}
	c.end()
	t.forget(c)
	t.roots.RemoveDir(id)
	return t.endOthers(ctx, id)
}
