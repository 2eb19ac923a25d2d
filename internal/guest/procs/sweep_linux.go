package procs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/stratavm/strata/internal/crun"
	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/lockfile"
	"github.com/stratavm/strata/internal/plaintext"
	"github.com/stratavm/strata/internal/regfile"
)

// InUse ends what processes that were killed left running in containers, and fails when something runs in a root on
// behalf of any that lives. The error matches gcsserver.ErrBusy.
func (t *Table) InUse(ctx context.Context, root string) error {
	living, err := t.sweep(ctx)
	if err != nil {
		return err
	}
	var who []string
	for _, l := range living {
		if l.Root == root {
			who = append(who, fmt.Sprintf("container %s: program %s", plaintext.Line(l.Container), plaintext.Line(l.Program)))
		}
	}
	if len(who) > 0 {
		return fmt.Errorf("%s is %w by %s", root, gcsserver.ErrBusy, strings.Join(who, ", "))
	}
	return nil
}

// foundInstance is an instance that is supervised by some process.
type foundInstance struct {
	instanceRecord
	bundle crun.Bundle
}

// sweep ends the instances whose supervisor was killed, and returns the others.
func (t *Table) sweep(ctx context.Context) (living []foundInstance, err error) {
	if t.crun == nil || t.keeps() {
		return nil, nil // there is nobody else
	}
	entries, err := os.ReadDir(t.state)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	defer t.still()()
	errs := []error{err}
	for _, e := range entries {
		b := crun.Bundle{Runtime: t.crun, Dir: filepath.Join(t.state, e.Name())}
		lock, err := lockfile.Try(filepath.Join(b.Dir, ownerName), false, 0)
		switch {
		case errors.Is(err, os.ErrNotExist):
			_ = os.Remove(b.Dir) // one that is just being made is made again
		case err != nil:
			errs = append(errs, err)
		case lock == nil:
			living = append(living, foundInstance{readInstance(b.Dir), b})
		default:
			errs = append(errs, removeBundle(ctx, b), lock.Close())
		}
	}
	return living, errors.Join(errs...)
}

// readInstance reads a record; there being none, as for a moment at the beginning, returns an empty one.
func readInstance(dir string) (r instanceRecord) {
	b, err := regfile.ReadState(filepath.Join(dir, recordName))
	if err == nil {
		_ = json.Unmarshal(b, &r) // one half written is of an instance that has not begun
	}
	return r
}

// freeElsewhere fails when another process runs something in a container.
func (t *Table) freeElsewhere(ctx context.Context, container string) error {
	living, err := t.sweep(ctx)
	if err != nil {
		return err
	}
	for _, l := range living {
		if l.Container == container {
			return fmt.Errorf("container %s: program %s runs in it: %w", container, plaintext.Line(l.Program),
				gcsserver.ErrContainer)
		}
	}
	return nil
}

// endOthers ends the instances of a container that other processes supervise, and those that nobody does any more.
func (t *Table) endOthers(ctx context.Context, container string) error {
	for {
		living, err := t.sweep(ctx)
		if err != nil {
			return err
		}
		found := false
		for _, l := range living {
			if l.Container == container {
				found = true
				t.kill(ctx, l.bundle)
			}
		}
		if !found {
			return nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("container %s: the processes of other programs in it do not end: %w", container,
				context.Cause(ctx))
		}
	}
}

// kill kills an instance. It may not run yet, or have just ended.
func (t *Table) kill(ctx context.Context, b crun.Bundle) {
	defer t.still()()
	_ = b.Kill(ctx, "KILL")
	_ = thaw(cgroupRoot, cgroupOf(b.Dir))
}
