package guest

import (
	"context"
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
	for _, m := range spec.Mounts {
		if m.Type == "bind" || m.Type == "none" || m.Type == "" {
			return fmt.Errorf("container %s: mount %q of type %q: %w", id, m.Destination, m.Type, errUnsupported)
		}
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
	if c := r.containers[id]; c != nil && c.root == root {
		return fmt.Errorf("container %s: %w", id, errContainer)
	}
	r.containers[id] = &container{id: id, root: root, hostname: hostname}
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
	}
	if p.Terminal {
		if p.Streams[2] != nil {
			p.Streams[2].Close()
			p.Streams[2] = nil
		}
	}
	pr := r.procs.add(p)
	pipes, err := newPipes(p.Streams)
	if err != nil {
		r.procs.remove(pr)
		return 0, err
	}
	cmd := command{Args: p.Args, Env: p.Env, Dir: p.Dir, User: p.User, Terminal: p.Terminal, Width: p.Width, Height: p.Height}
	var master *os.File
	if c != nil {
		// Images name directories that they do not have. It is made by the container's first process, to
		// whom the root is all there is, so that no symbolic link leads out of it.
		cmd.MakeDir = true
		master, err = c.exec(r, pr, cmd, pipes)
	} else {
		master, err = r.execHere(pr, cmd, pipes)
	}
	if err != nil {
		pipes.close()
		r.procs.remove(pr)
		return 0, err
	}
	if p.Terminal {
		pipes.useMaster(master)
	} else {
		pipes.closeChild()
	}
	pipes.relay(pr, p.Terminal)
	return pr.id, nil
}

// execHere starts a process in the VM itself.
func (r *linuxRuntime) execHere(p *process, cmd command, pipes *stdioPipes) (*os.File, error) {
	ready := make(chan struct{})
	pid, master, err := r.spawn.execute(cmd, pipes.child, func(st syscall.WaitStatus, _ bool) {
		go func() {
			<-ready
			r.procs.finish(p, exitCode(st))
		}()
	})
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
	if _, err := r.container(container); err != nil {
		return err
	}
	for _, p := range r.procs.running(container, false) {
		_ = p.signal(signal) // one that has just ended is no error
	}
	return nil
}

// Delete implements Runtime. What is mounted stays mounted.
func (r *linuxRuntime) Delete(ctx context.Context, id string) error {
	c, err := r.container(id)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, deviceTime)
	defer cancel()
	if err := c.stop(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	delete(r.containers, id)
	r.mu.Unlock()
	_ = atParent(filepath.Join(r.base, "gcs/c", id), removeEmpty)
	return nil
}
