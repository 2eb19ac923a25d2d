package wclayer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/stratavm/strata/internal/bootid"
	"github.com/stratavm/strata/internal/hostpath"
)

// Options of [New].
type Options struct {
	// API is the platform.
	API API
	// Build is the build of Windows; 0 is the newest.
	Build uint32
	// Log gets one line per call; it may be nil.
	Log *slog.Logger
	// UsesDir is a directory in which all processes of this host record what they have mounted. Without it, Destroy
	// always returns an error.
	UsesDir string
	// BootID identifies the boot of the system: records of another boot in UsesDir are ignored. If nil, it is package
	// bootid's.
	BootID func() (string, error)
	// Sleep waits between two attempts; nil is the real clock.
	Sleep func(ctx context.Context, d time.Duration) error
}

// System implements [Host] by the platform's functions. A process must use only one: the platform has a race if layers
// are prepared at the same time, and only calls of the same System are serialized.
type System struct {
	api   API
	build uint32
	log   *slog.Logger
	uses  uses
	sleep func(context.Context, time.Duration) error

	preparing chan struct{} // semaphore of capacity 1, empty while a layer is being prepared

	mu    sync.Mutex
	turns map[string]*turn // by hostpath.Identity of a path
	disks map[string]Disk  // attached by VHDMountPath, by identity of the file
}

// turn serializes the calls on one path.
type turn struct {
	token chan struct{}
	users int
}

// New returns a System.
func New(o Options) *System {
	s := &System{
		api: o.API, build: o.Build, log: o.Log, uses: uses{dir: o.UsesDir, boot: o.BootID}, sleep: o.Sleep,
		preparing: make(chan struct{}, 1), turns: map[string]*turn{}, disks: map[string]Disk{},
	}
	s.preparing <- struct{}{}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.uses.boot == nil {
		s.uses.boot = bootid.Read
	}
	if s.sleep == nil {
		s.sleep = sleep
	}
	return s
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// call is one operation: calls into the platform, which cannot be cancelled.
type call struct {
	op   string
	path string // the key of the turn
	do   func(context.Context) error
	// undo undoes do if it succeeds after the caller has gone. Nil: there is nothing to undo.
	undo func() error
}

// run runs a call in the background, after those on the same path have ended. If ctx ends first run returns, and the
// next call on the path starts when this one has ended and was undone.
func (s *System) run(ctx context.Context, c call) error {
	release, err := s.takeTurn(ctx, hostpath.Identity(c.path))
	if err != nil {
		return fmt.Errorf("%s %s: waiting for an earlier call on it: %w: %w", c.op, c.path, ErrUnfinished, err)
	}
	done := make(chan error)
	gone := make(chan struct{})
	go func() {
		defer release()
		err := c.do(ctx)
		s.log.Debug(c.op, "path", c.path, "err", err)
		select {
		case done <- err:
		case <-gone:
			s.tidy(c, err)
		}
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		close(gone)
		return fmt.Errorf("%s %s: %w: %w", c.op, c.path, ErrUnfinished, context.Cause(ctx))
	}
}

// tidy undoes a call whose caller has gone.
func (s *System) tidy(c call, err error) {
	if err != nil || c.undo == nil {
		s.log.Info(c.op+" ended late", "path", c.path, "err", err)
		return
	}
	err = c.undo()
	s.log.Warn(c.op+" succeeded late and was undone", "path", c.path, "err", err)
}

// takeTurn blocks until no other call uses key.
func (s *System) takeTurn(ctx context.Context, key string) (release func(), err error) {
	s.mu.Lock()
	t := s.turns[key]
	if t == nil {
		t = &turn{token: make(chan struct{}, 1)}
		t.token <- struct{}{}
		s.turns[key] = t
	}
	t.users++
	s.mu.Unlock()

	leave := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(s.turns, key)
		}
	}
	if err := take(ctx, t.token); err != nil {
		leave()
		return nil, err
	}
	return func() { t.token <- struct{}{}; leave() }, nil
}

// take receives a token, or fails if ctx ends first.
func take(ctx context.Context, token chan struct{}) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	select {
	case <-token:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// tolerate returns nil for errors that match one of absent: what is to be removed does not exist.
func (s *System) tolerate(err error, absent ...error) error {
	for _, a := range absent {
		if errors.Is(err, a) {
			s.log.Info("nothing to take away", "err", err)
			return nil
		}
	}
	return err
}
