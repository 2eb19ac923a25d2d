package store

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/stratavm/strata/internal/atomicfile"
	"github.com/stratavm/strata/internal/lockfile"
)

// Lease keeps objects of the store from garbage collection: as long as the process that took it lives,
// and after Detach as long as the path it was given exists.
type Lease struct {
	f *os.File
}

// leaseFile is the content of a lease's file, whose lock its owner holds.
type leaseFile struct {
	Owner   string    `json:"owner"`           // for people
	While   string    `json:"while,omitempty"` // a path; the lease lives while it exists
	Taken   time.Time `json:"taken"`
	Objects []object  `json:"objects"`
}

// hold takes a lease on objects, whether they exist yet or not. The lock of the store is held meanwhile,
// so that a garbage collection either sees the lease or is over.
func (s *Store) hold(ctx context.Context, owner, while string, objects []object) (l *Lease, err error) {
	b, err := json.Marshal(leaseFile{Owner: owner, While: while, Taken: now(), Objects: objects})
	if err != nil {
		return nil, err
	}
	err = s.with(ctx, true, func() error {
		var f *os.File
		for f == nil {
			var err error
			path := s.path(leasesDir, strings.ToLower(rand.Text()[:16])+".json")
			if f, err = lockfile.Try(path, false, os.O_CREATE|os.O_EXCL); err != nil {
				return explain(err)
			}
		}
		if _, err := f.Write(b); err != nil {
			return errors.Join(explain(err), lockfile.Drop(f))
		}
		if while != "" {
			// Such a lease outlives us, and must outlive a crash of the machine too.
			if err := errors.Join(f.Sync(), atomicfile.SyncDir(s.path(leasesDir))); err != nil {
				return errors.Join(explain(err), lockfile.Drop(f))
			}
		}
		l = &Lease{f: f}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("take a lease: %w", err)
	}
	return l, nil
}

// Lease keeps the layers of an image from garbage collection, for an owner named for people. With while,
// a path, the lease can be detached from this process: it then lives as long as the path exists.
func (s *Store) Lease(ctx context.Context, img Image, owner, while string) (*Lease, error) {
	if while != "" {
		abs, err := filepath.Abs(while)
		if err != nil {
			return nil, fmt.Errorf("take a lease: %w", err)
		}
		while = abs
	}
	l, err := s.hold(ctx, owner, while, img.objects())
	if err != nil {
		return nil, err
	}
	// The image may have been removed and collected just before.
	for _, o := range img.objects() {
		if _, err := os.Stat(s.path(string(o))); err != nil {
			return nil, errors.Join(fmt.Errorf("image %s: %s: %w; import it again", img.Name, o, ErrNotFound), l.Release())
		}
	}
	return l, nil
}

// Release ends the lease. It may be called again, and on nil.
func (l *Lease) Release() error {
	if l == nil || l.f == nil {
		return nil
	}
	f := l.f
	l.f = nil
	return lockfile.Drop(f)
}

// Detach leaves the lease to live as long as the path that it was taken with.
func (l *Lease) Detach() error {
	if l == nil || l.f == nil {
		return nil
	}
	f := l.f
	l.f = nil
	return f.Close()
}

// leased returns the objects of the leases that live and removes those that do not. The lock of the store
// must be held exclusively.
func (s *Store) leased() (map[object]string, error) {
	held := map[object]string{}
	list, err := os.ReadDir(s.path(leasesDir))
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		path := s.path(leasesDir, e.Name())
		b, err := lockfile.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // released just now
		}
		if err != nil {
			return nil, err
		}
		var lf leaseFile
		torn := json.Unmarshal(b, &lf) != nil // its owner was killed while taking it
		f, err := lockfile.Try(path, false, 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		alive := f == nil
		if f != nil {
			if !torn && lf.While != "" {
				_, serr := os.Lstat(lf.While)
				alive = !errors.Is(serr, fs.ErrNotExist)
			}
			if alive {
				err = f.Close()
			} else {
				s.o.Logger.Info("removing a lease whose owner is gone", "owner", lf.Owner)
				err = lockfile.Drop(f)
			}
			if err != nil {
				return nil, err
			}
		}
		if alive {
			for _, o := range lf.Objects {
				held[o] = lf.Owner
			}
		}
	}
	return held, nil
}
