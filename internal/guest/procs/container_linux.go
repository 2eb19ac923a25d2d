package procs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/vmm"
)

// container is a registered container and the instance that runs in it.
type container struct {
	id, root, hostname string
	// name is the instance name of its configuration, see gcs.ContainerConfig; empty: hosts start processes one by one
	name      string
	temporary []specs.Mount      // tmpfs mounts of a partial spec, see whole
	first     *gcsserver.Process // the process of its spec, or nil
	doc       *specs.Spec        // its spec if that is whole, or nil

	mu      sync.Mutex // held while processes are started or all are stopped
	run     *instance  // nil: nothing runs
	retired bool       // it was replaced or deleted: nothing starts in it any more

	life containerLife
	// ended is closed when the spec's process and with it all others have ended, or when the container is deleted.
	ended chan struct{}
}

// errEnding is returned if the instance is ending, so that a new one is needed.
var errEnding = errors.New("the container's last process has just ended")

// exec starts a process in the container: in the instance that runs, or in a new one. With first, it is the spec's
// process, and nothing else may run.
func (c *container) exec(t *Table, p *process, cmd command, pipes *stdioPipes, first bool) (*os.File, error) {
	if t.crun == nil {
		return nil, fmt.Errorf("container %s: %w: %w", c.id, errNoRuntime, gcsserver.ErrUnsupported)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.retired {
		return nil, fmt.Errorf("container %s: %w", c.id, gcsserver.ErrNoContainer)
	}
	if first && c.runs() {
		return nil, fmt.Errorf("container %s: a program runs in it: %w", c.id, gcsserver.ErrContainer)
	}
	if c.run != nil && c.run.paused() && !c.run.ending() {
		return nil, fmt.Errorf("container %s: %w: let it go on first", c.id, vmm.ErrPaused)
	}
	for {
		if c.run == nil {
			run, err := newInstance(t, c)
			if err == nil && t.keeps() && !first {
				err = run.beginPause()
			}
			if err != nil {
				return nil, err
			}
			c.run = run
		}
		master, err := c.run.exec(p, cmd, pipes)
		if !errors.Is(err, errEnding) {
			p.in = c.run
			return master, err
		}
		if !c.run.gone() {
			return nil, fmt.Errorf("container %s: what ran last in it does not end: %w", c.id, gcsserver.ErrBusy)
		}
		c.run = nil
	}
}

// errNoRuntime is returned by a guest without crun and runc.
var errNoRuntime = errors.New("the guest has no program that runs containers: install crun on the host " +
	"(apt-get install crun) and start the VM anew")

// stop kills the container's processes and waits until they have ended.
func (c *container) stop(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run == nil {
		return nil
	}
	c.run.end()
	select {
	case <-c.run.exited:
		c.run = nil
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container %s: its processes do not end: %w", c.id, context.Cause(ctx))
	}
}

// settle reports whether something runs in the container. It waits for an instance that is ending, and ends one with
// only its pause process, so that it does not keep mounts busy.
func (c *container) settle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.runs()
}

// retire prevents processes from being started in the container. It returns false, and does nothing, if something runs.
func (c *container) retire() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retired = c.retired || !c.runs()
	return c.retired
}

// runs is settle; the caller must hold c.mu.
func (c *container) runs() bool {
	if c.run == nil {
		return false
	}
	if c.run.onlyPauses() {
		c.run.end()
		if !c.run.gone() {
			return true
		}
	} else if c.run.ending() && !c.run.gone() {
		return true
	}
	select {
	case <-c.run.exited:
		c.run = nil
		return false
	default:
		return true
	}
}

// gone waits until an ending instance has ended, and reports whether it has. It gives up after waitTime, because a
// process may hang in the kernel.
func (i *instance) gone() bool {
	select {
	case <-i.exited:
		return true
	case <-time.After(waitTime):
		return false
	}
}
