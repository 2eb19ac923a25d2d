package procs

import (
	"fmt"
	"sync"
	"syscall"

	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// containerLife is the state of a container that starts and ends with the process of its spec. A container whose host
// starts processes one by one stays in the first state.
type containerLife struct {
	mu     sync.Mutex
	state  lifeState
	signal int // the last one sent by Stop or Delete
}

type lifeState int

const (
	lifeIdle     lifeState = iota // the first process has not been started
	lifeStarting                  // it is being started
	lifeRunning                   // it runs
	lifeOver                      // it has ended
	lifeDeleted                   // the container was deleted before the first process was started
)

// begin checks that a process can be started in this state, and fills in p from the spec if it is the first one.
func (c *container) begin(p *gcsserver.Process) error {
	c.life.mu.Lock()
	defer c.life.mu.Unlock()
	switch {
	case c.life.state == lifeOver && c.name == "":
		return fmt.Errorf("container %s: %w", c.id, gcsserver.ErrStopped)
	case !p.First:
		return nil
	case p.Instance != c.name: // the container was replaced
		return fmt.Errorf("container %s: %w", c.id, gcsserver.ErrContainer)
	case c.first == nil:
		return fmt.Errorf("container %s: no program given, neither now nor in its document: %w", c.id, gcsserver.ErrInvalid)
	case c.life.state != lifeIdle:
		return fmt.Errorf("container %s has begun already: %w", c.id, gcsserver.ErrState)
	}
	c.life.state = lifeStarting
	first := *c.first
	first.MakeDir = p.MakeDir || c.name == ""
	first.First, first.Streams, first.Terminal = true, p.Streams, first.Terminal || p.Terminal
	if p.Width > 0 && p.Height > 0 {
		first.Width, first.Height = p.Width, p.Height
	}
	*p = first
	return nil
}

// begun records whether the first process was started. The container ends when that process ends.
func (c *container) begun(p *process, err error) {
	c.life.mu.Lock()
	defer c.life.mu.Unlock()
	if err != nil {
		c.life.state = lifeIdle
		return
	}
	c.life.state = lifeRunning
	go func() {
		<-p.exited
		p.in.gone() // processes that do not end with it keep the root busy, which unmounting reports
		c.end()
	}()
}

// asked records the signal by which a host has asked a container to end.
func (c *container) asked(signal int) {
	c.life.mu.Lock()
	defer c.life.mu.Unlock()
	c.life.signal = signal
}

// end records that the container has ended or was deleted, and closes ended. It is idempotent.
func (c *container) end() {
	c.life.mu.Lock()
	defer c.life.mu.Unlock()
	switch c.life.state {
	case lifeOver, lifeDeleted:
		return
	case lifeRunning:
		c.life.state = lifeOver
	default:
		c.life.state = lifeDeleted
	}
	close(c.ended)
}

// how returns how a container has ended: a type of gcs.Notification.
func (c *container) how() (string, error) {
	c.life.mu.Lock()
	defer c.life.mu.Unlock()
	switch {
	case c.life.state != lifeOver:
		return "", fmt.Errorf("container %s: %w", c.id, gcsserver.ErrNoContainer)
	case c.life.signal == int(syscall.SIGKILL):
		return gcs.ExitForced, nil
	case c.life.signal != 0:
		return gcs.ExitGraceful, nil
	}
	return gcs.ExitUnexpected, nil
}
