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

// container is a root and what runs in it.
type container struct {
	id, root, hostname string
	// of its document: see gcs.ContainerConfig; empty: hosts start processes by themselves
	name      string
	temporary []specs.Mount      // file systems in memory that a document of few words asks for
	first     *gcsserver.Process // of its document, or nil
	doc       *specs.Spec        // a whole one, or nil

	mu      sync.Mutex // held while processes are started or all are stopped
	run     *instance  // what runs in it; nil: nothing
	retired bool       // nothing begins in it any more: another one takes its place, or it is deleted

	life containerLife
	// ended is closed when the first process of the document and all others have ended, or when the
	// container is deleted.
	ended chan struct{}
}

// errEnding: the instance is about to end; another one is needed.
var errEnding = errors.New("the container's last process has just ended")

// exec starts a process in the container. The first one begins an instance; others join the one that runs.
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

// errNoRuntime says what a guest lacks.
var errNoRuntime = errors.New("the guest has no program that runs containers: install crun on the host " +
	"(apt-get install crun) and start the VM anew")

// stop kills whatever runs in the container and waits until it has ended.
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

// settle waits for an instance that is on its way out, and ends one in which nothing but its pause runs, so that it
// does not hold mounts any more. It reports whether something runs in the container.
func (c *container) settle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.runs()
}

// retire lets nothing begin in the container any more, unless something runs in it.
func (c *container) retire() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retired = c.retired || !c.runs()
	return c.retired
}

// runs is settle for who holds c.mu.
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

// gone waits for an instance that is on its way out, not for ever: a process may hang in the kernel.
func (i *instance) gone() bool {
	select {
	case <-i.exited:
		return true
	case <-time.After(waitTime):
		return false
	}
}
