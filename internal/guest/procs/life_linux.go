package procs

import (
	"fmt"
	"sync"
	"syscall"

	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// containerLife is how far a container is that begins and ends with the process in its document. Hosts of
// our own start all processes by themselves; their containers stay in the first state.
type containerLife struct {
	mu     sync.Mutex
	state  lifeState
	signal int // the last that was sent to all
}

type lifeState int

const (
	lifeIdle     lifeState = iota // the first process has not been started
	lifeStarting                  // it is being started
	lifeRunning                   // it runs
	lifeOver                      // it has ended
	lifeDeleted                   // the container is deleted before it began
)

// begin checks that a process can be started in this state, and completes the one of the document.
func (c *container) begin(p *gcsserver.Process) error {
	c.life.mu.Lock()
	defer c.life.mu.Unlock()
	switch {
	case c.life.state == lifeOver && c.name == "":
		return fmt.Errorf("container %s: %w", c.id, gcsserver.ErrStopped)
	case !p.First:
		return nil
	case p.Instance != c.name: // another one has taken its place
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

// begun notes what became of the first process. When it ends so does the container.
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
		p.in.gone() // what does not end with it keeps the root in use, and unmounting says so
		c.end()
	}()
}

// asked notes the signal by which a container is to end.
func (c *container) asked(signal int) {
	c.life.mu.Lock()
	defer c.life.mu.Unlock()
	c.life.signal = signal
}

// end notes that nothing of a container runs any more, once.
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

// how is the way a container has ended.
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
