package strata

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/stratavm/strata/internal/lockfile"
)

// Sweep cleans up after killed runs that which accepts, and returns their ids. Live runs are not touched. If cleaning
// up after a run fails, the error names it, the next Sweep retries, and the other runs are still handled.
func (rs *Runs) Sweep(ctx context.Context, which func(RunRecord) bool) (ids []string, err error) {
	return rs.abandoned(which, true, func(r *Run) error {
		if err := r.End(ctx); err != nil {
			return fmt.Errorf("clean up after the interrupted run %s: %w", r.id, err)
		}
		return nil
	})
}

// Abandoned returns the ids of the runs that Sweep would clean up, without changing anything.
func (rs *Runs) Abandoned(which func(RunRecord) bool) (ids []string, err error) {
	return rs.abandoned(which, false, func(r *Run) error { return r.lock.Close() })
}

// abandoned calls f, which must close the lock, for each killed run that which accepts, and returns the ids for which
// f succeeded. With tidy it also removes run folders without a record.
func (rs *Runs) abandoned(which func(RunRecord) bool, tidy bool, f func(*Run) error) (ids []string, err error) {
	if err := checkDir(rs.Dir); err != nil {
		return nil, err
	}
	if _, err := os.Stat(rs.runDir("")); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	records := func(d fs.DirEntry) string {
		if !d.IsDir() || !runID.MatchString(d.Name()) {
			return ""
		}
		return filepath.Join(d.Name(), runFile)
	}
	err = lockfile.Sweep(context.Background(), rs.runDir(""), records, func(id string, lock *os.File) error {
		r := &Run{runs: rs, id: id, dir: rs.runDir(id), lock: lock}
		if lock == nil {
			// Begin creates the folder first, then the file: one without the file is empty.
			if tidy {
				_ = os.Remove(r.dir) // Begin creates it again if it needs it
			}
			return nil
		}
		r.read()
		if !which(r.record) {
			return lock.Close()
		}
		if err := f(r); err != nil {
			return err
		}
		ids = append(ids, id)
		return nil
	})
	return ids, err
}
