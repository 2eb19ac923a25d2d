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

// InUse ends the containers that killed processes left running, and returns an error that matches gcsserver.ErrBusy if
// a container of a live process runs in root.
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

// foundInstance is an instance that a live process supervises.
type foundInstance struct {
	instanceRecord
	bundle crun.Bundle
}

// sweep removes the instances whose supervisor was killed, and returns the others.
func (t *Table) sweep(ctx context.Context) (living []foundInstance, err error) {
	if t.crun == nil || t.keeps() {
		return nil, nil // no other process uses the directory
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
			_ = os.Remove(b.Dir) // if it is being created, newInstance creates another one
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

// readInstance reads the record of an instance. It returns an empty one if there is none, as while it is being created.
func readInstance(dir string) (r instanceRecord) {
	b, err := regfile.ReadState(filepath.Join(dir, recordName))
	if err == nil {
		_ = json.Unmarshal(b, &r) // an incomplete record is that of an instance that has not started
	}
	return r
}

// freeElsewhere returns an error if another process runs something in a container.
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

// endOthers kills the instances of a container that other processes supervise, and waits until they have ended. It also
// removes those whose supervisor was killed.
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

// kill kills an instance. Errors are ignored: it may not run yet, or may have ended.
func (t *Table) kill(ctx context.Context, b crun.Bundle) {
	defer t.still()()
	_ = b.Kill(ctx, "KILL")
	_ = thaw(cgroupRoot, cgroupOf(b.Dir))
}
