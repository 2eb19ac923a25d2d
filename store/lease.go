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

// Lease protects objects of the store from garbage collection as long as the process that took it lives or, after
// Detach, as long as a path exists.
type Lease struct {
	f *os.File
}

// leaseFile is the content of a lease's file. The owner holds a lock on the file.
type leaseFile struct {
	Owner   string    `json:"owner"`           // human-readable
	While   string    `json:"while,omitempty"` // a path; the lease is valid as long as it exists
	Taken   time.Time `json:"taken"`
	Objects []object  `json:"objects"`
}

// hold takes a lease on objects, which need not exist yet. It holds the lock of the store, so that a garbage
// collection either sees the lease or is finished.
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
			// This lease outlives the process, and must also survive a crash of the host.
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

// Lease protects the layers of an image from garbage collection. owner is a human-readable name. With a path while,
// the lease can be detached from this process: it is then valid as long as the path exists.
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
	// The image may have been removed and garbage collected just before.
	for _, o := range img.objects() {
		if _, err := os.Stat(s.path(string(o))); err != nil {
			return nil, errors.Join(fmt.Errorf("image %s: %s: %w; import it again", img.Name, o, ErrNotFound), l.Release())
		}
	}
	return l, nil
}

// Release ends the lease. It is idempotent; l may be nil.
func (l *Lease) Release() error {
	if l == nil || l.f == nil {
		return nil
	}
	f := l.f
	l.f = nil
	return lockfile.Drop(f)
}

// Detach detaches the lease from this process: it is valid as long as the path that it was taken with exists.
func (l *Lease) Detach() error {
	if l == nil || l.f == nil {
		return nil
	}
	f := l.f
	l.f = nil
	return f.Close()
}

// leased returns the objects of valid leases and removes the others. The caller must hold the lock of the store
// exclusively.
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
			continue // released in the meantime
		}
		if err != nil {
			return nil, err
		}
		var lf leaseFile
		torn := json.Unmarshal(b, &lf) != nil // the owner was killed while writing it
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
