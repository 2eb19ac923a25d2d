package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/stratavm/strata/internal/gcs"
)

// Create implements Runtime.
func (r *linuxRuntime) Create(_ context.Context, id string, config gcs.ContainerConfig) error {
	spec := config.OciSpecification
	if spec == nil || spec.Root == nil || spec.Root.Path == "" {
		return fmt.Errorf("container %s: its document names no root: %w", id, errInvalid)
	}
	if strings.ContainsAny(id, "/\x00") || len(id) > 255 {
		return fmt.Errorf("container id %q: %w", id, errInvalid)
	}
	root := spec.Root.Path
	if !filepath.IsAbs(root) {
		root = filepath.Join(config.OciBundlePath, root)
	}
	if err := r.checkPath(root); err != nil {
		return err
	}
	temporary, err := temporaryMounts(spec.Mounts)
	if err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	hostname := spec.Hostname
	if hostname == "" {
		hostname = id
	}
	if len(hostname) > 64 {
		hostname = hostname[:64]
	}
	if c, err := r.container(id); err == nil && c.root != root && c.settle() {
		return fmt.Errorf("container %s runs in the root %s: %w", id, c.root, errBusy)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.containers[id]; old != nil && old.root == root {
		return fmt.Errorf("container %s: %w", id, errContainer)
	} else if old != nil {
		old.end()
	}
	c := &container{id: id, root: root, hostname: hostname, temporary: temporary, ended: make(chan struct{})}
	if spec.Process != nil && len(spec.Process.Args) > 0 {
		c.first = &Process{Container: id, MakeDir: true}
		c.first.describe(spec.Process)
	}
	r.containers[id] = c
	return nil
}

func (r *linuxRuntime) container(id string) (*container, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[id]
	if c == nil {
		return nil, fmt.Errorf("container %s: %w", id, errNoContainer)
	}
	return c, nil
}

// Exec implements Runtime.
func (r *linuxRuntime) Exec(_ context.Context, p Process) (uint32, error) {
	var c *container
	if p.Container != "" {
		var err error
		if c, err = r.container(p.Container); err != nil {
			return 0, err
		}
		if err := c.begin(&p); err != nil {
			return 0, err
		}
	}
	pr, err := r.start(c, p)
	if c != nil && p.First {
		c.begun(pr, err)
	}
	if err != nil {
		return 0, err
	}
	return pr.id, nil
}

// start starts a process in a container, or in the VM itself.
func (r *linuxRuntime) start(c *container, p Process) (*process, error) {
	if err := gcs.CheckArguments(p.Args, p.Env); err != nil {
		return nil, err
	}
	if p.Terminal && p.Streams[2] != nil {
		p.Streams[2].Close()
		p.Streams[2] = nil
	}
	pr := r.procs.add(p)
	pipes, err := newPipes(p.Streams)
	if err != nil {
		r.procs.remove(pr)
		return nil, err
	}
	// In a container the directory is made by its first process, to whom the root is all there is, so that no
	// symbolic link leads out of it.
	cmd := command{Args: p.Args, Env: p.Env, Dir: p.Dir, MakeDir: p.MakeDir && c != nil, User: p.User, Groups: p.Groups,
		Terminal: p.Terminal, Width: p.Width, Height: p.Height}
	var master *os.File
	if c != nil {
		master, err = c.exec(r, pr, cmd, pipes)
	} else {
		master, err = r.execHere(pr, cmd, pipes)
	}
	if err != nil {
		pipes.close()
		r.procs.remove(pr)
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
func (r *linuxRuntime) execHere(p *process, cmd command, pipes *stdioPipes) (*os.File, error) {
	ready := make(chan struct{})
	var pid int
	var master *os.File
	var err error
	ownErr := onOwnThread(func() {
		pid, master, err = r.spawn.execute(cmd, pipes.child, func(st syscall.WaitStatus, _ bool) {
			go func() {
				<-ready
				r.procs.finish(p, exitCode(st))
			}()
		})
	})
	err = errors.Join(ownErr, err)
	if err == nil && master != nil {
		master, err = pollable(master)
	}
	if err == nil {
		p.started(func(sig syscall.Signal) error { return r.spawn.signal(pid, sig) }, master)
	}
	close(ready)
	return master, err
}

// Wait implements Runtime.
func (r *linuxRuntime) Wait(ctx context.Context, container string, pid uint32) (int, error) {
	p, err := r.procs.get(container, pid)
	if err != nil {
		return 0, err
	}
	return waitExit(ctx, p)
}

// Signal implements Runtime.
func (r *linuxRuntime) Signal(_ context.Context, container string, pid uint32, signal int) error {
	p, err := r.procs.get(container, pid)
	if err != nil {
		return err
	}
	return p.signal(signal)
}

// Resize implements Runtime.
func (r *linuxRuntime) Resize(_ context.Context, container string, pid uint32, width, height uint16) error {
	p, err := r.procs.get(container, pid)
	if err != nil {
		return err
	}
	return p.resize(width, height)
}

// Processes implements Runtime.
func (r *linuxRuntime) Processes(container string) ([]uint32, error) {
	if container != "" {
		if _, err := r.container(container); err != nil {
			return nil, err
		}
	}
	var ids []uint32
	for _, p := range r.procs.running(container, false) {
		ids = append(ids, p.id)
	}
	return ids, nil
}

// Stop implements Runtime.
func (r *linuxRuntime) Stop(_ context.Context, container string, signal int) error {
	c, err := r.container(container)
	if err != nil {
		return err
	}
	c.asked(signal)
	for _, p := range r.procs.running(container, false) {
		_ = p.signal(signal) // one that has just ended is no error
	}
	return nil
}

// Ended implements Runtime.
func (r *linuxRuntime) Ended(ctx context.Context, container string) (string, error) {
	c, err := r.container(container)
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

// Delete implements Runtime. What is mounted stays mounted.
func (r *linuxRuntime) Delete(ctx context.Context, id string) error {
	c, err := r.container(id)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, deviceTime)
	defer cancel()
	c.asked(int(syscall.SIGKILL))
	if err := c.stop(ctx); err != nil {
		return err
	}
	c.end()
	r.mu.Lock()
	delete(r.containers, id)
	r.mu.Unlock()
	_ = atParent(filepath.Join(r.base, "gcs/c", id), removeEmpty)
	return nil
}
