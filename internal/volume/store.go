package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/stratavm/strata/internal/atomicfile"
	"github.com/stratavm/strata/internal/lockfile"
	"github.com/stratavm/strata/internal/regfile"
)

// Errors that those of a Store match.
var (
	// ErrNotFound: there is no volume of that name.
	ErrNotFound = errors.New("no such volume")
	// ErrInUse: a container has the volume.
	ErrInUse = errors.New("the volume is in use")
)

// Store is the directory of the named volumes. Its methods may be called concurrently, also by several processes.
type Store struct {
	Dir string // absolute
	// Alive reports whether a container that has used a volume may still use it. If nil, it always may.
	Alive func(container string) bool
}

// Info describes a volume.
type Info struct {
	Name    string            `json:"name"`
	Created time.Time         `json:"created"`
	Labels  map[string]string `json:"labels,omitempty"`
	Path    string            `json:"path"`             // of its files
	UsedBy  []string          `json:"usedBy,omitempty"` // containers
}

// Files of a volume, and of the store.
const (
	infoFile  = "volume.json"
	dataDir   = "data"
	usersDir  = "users"
	lockName  = ".lock"
	trashName = ".removed-"
)

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

func nameError(name string) error {
	return fmt.Errorf("volume name %q: use 1 to 128 letters, digits, '_', '.' or '-', a letter or digit first", name)
}

// DataPath returns the directory with the files of a volume, which need not exist.
func (s Store) DataPath(name string) string { return filepath.Join(s.Dir, name, dataDir) }

// locked calls do with the store locked against other processes.
func (s Store) locked(ctx context.Context, do func() error) error {
	if !filepath.IsAbs(s.Dir) {
		return fmt.Errorf("folder of volumes %q: give an absolute path", s.Dir)
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return fmt.Errorf("volumes: %w", err)
	}
	lock, err := lockfile.Wait(ctx, filepath.Join(s.Dir, lockName), false)
	if err != nil {
		return fmt.Errorf("volumes: lock %s: %w", s.Dir, err)
	}
	return errors.Join(do(), lock.Close())
}

// Create creates a volume. If it exists, it is returned unchanged and created is false.
func (s Store) Create(ctx context.Context, name string, labels map[string]string) (info Info, created bool, err error) {
	if !validName.MatchString(name) {
		return info, false, fmt.Errorf("%w: %w", ErrInvalid, nameError(name))
	}
	err = s.locked(ctx, func() error {
		info, created, err = s.make(name, labels)
		return err
	})
	return info, created, err
}

// make creates a volume unless it exists. The caller must hold the lock.
func (s Store) make(name string, labels map[string]string) (info Info, created bool, err error) {
	if info, err = s.read(name); !errors.Is(err, ErrNotFound) {
		return info, false, err
	}
	dir := filepath.Join(s.Dir, name)
	if err := os.RemoveAll(dir); err != nil { // left by a process that was killed
		return info, false, fmt.Errorf("volume %s: %w", name, err)
	}
	b, err := json.Marshal(Info{Name: name, Created: time.Now().UTC().Truncate(time.Second), Labels: labels})
	if err == nil {
		err = os.MkdirAll(filepath.Join(dir, usersDir), 0o700)
	}
	if err == nil {
		err = os.Mkdir(s.DataPath(name), 0o755)
	}
	if err == nil {
		err = atomicfile.Write(filepath.Join(dir, infoFile), append(b, '\n'), atomicfile.Options{})
	}
	if err != nil {
		return info, false, errors.Join(fmt.Errorf("create volume %s: %w", name, err), os.RemoveAll(dir))
	}
	info, err = s.read(name)
	return info, true, err
}

// maxInfo is the maximum size of volume.json in bytes.
const maxInfo = 1 << 20

// read reads the description of a volume.
func (s Store) read(name string) (info Info, err error) {
	if !validName.MatchString(name) {
		return info, fmt.Errorf("%w: %w", ErrNotFound, nameError(name))
	}
	b, err := regfile.Read(filepath.Join(s.Dir, name, infoFile), maxInfo)
	if errors.Is(err, fs.ErrNotExist) {
		return info, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	if err == nil {
		err = json.Unmarshal(b, &info)
	}
	if err != nil {
		return info, fmt.Errorf("volume %s: %w", name, err)
	}
	info.Name, info.Path = name, s.DataPath(name)
	info.UsedBy, err = s.users(name)
	return info, err
}

// users returns the containers that use a volume.
func (s Store) users(name string) (users []string, err error) {
	entries, err := os.ReadDir(filepath.Join(s.Dir, name, usersDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if s.Alive == nil || s.Alive(e.Name()) {
			users = append(users, e.Name())
		}
	}
	return users, err
}

// Use records that a container uses a volume, and creates the volume if it does not exist. The use ends when
// Store.Alive returns false for the container. empty is true if the volume has no files.
func (s Store) Use(ctx context.Context, name, container string) (info Info, empty bool, err error) {
	if !validName.MatchString(name) || !validName.MatchString(container) {
		return info, false, fmt.Errorf("%w: volume %q of container %q", ErrInvalid, name, container)
	}
	err = s.locked(ctx, func() error {
		if info, _, err = s.make(name, nil); err != nil {
			return err
		}
		dir := filepath.Join(s.Dir, name, usersDir)
		if err := s.forgetDead(dir); err != nil {
			return err
		}
		if err := mark(filepath.Join(dir, container)); err != nil {
			return fmt.Errorf("volume %s: %w", name, err)
		}
		empty, err = emptyDir(info.Path)
		return err
	})
	return info, empty, err
}

// mark creates an empty file unless it exists.
func mark(path string) error {
	f, err := regfile.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// forgetDead removes the marks of containers that do not exist any more.
func (s Store) forgetDead(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if s.Alive != nil && !s.Alive(e.Name()) {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

func emptyDir(path string) (bool, error) {
	d, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer d.Close()
	_, err = d.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return false, err
}

// Inspect returns the description of a volume.
func (s Store) Inspect(name string) (Info, error) { return s.read(name) }

// List returns all volumes, sorted by name.
func (s Store) List() (all []Info, err error) {
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if !e.IsDir() || !validName.MatchString(e.Name()) {
			continue
		}
		info, rerr := s.read(e.Name())
		if errors.Is(rerr, ErrNotFound) {
			continue // it is being removed or created
		}
		if rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		all = append(all, info)
	}
	return all, err
}

// Remove removes a volume with its files. If a container uses it the error matches ErrInUse.
func (s Store) Remove(ctx context.Context, name string) error {
	return s.locked(ctx, func() error { return s.remove(name) })
}

func (s Store) remove(name string) error {
	info, err := s.read(name)
	if err != nil {
		return err
	}
	if len(info.UsedBy) > 0 {
		return fmt.Errorf("remove volume %s: %w by %s", name, ErrInUse, strings.Join(info.UsedBy, ", "))
	}
	// Renamed first, so that a killed process leaves no damaged volume.
	trash := filepath.Join(s.Dir, trashName+name)
	err = os.RemoveAll(trash)
	if err == nil {
		err = os.Rename(filepath.Join(s.Dir, name), trash)
	}
	if err == nil {
		err = os.RemoveAll(trash)
	}
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	return nil
}

// Prune removes the volumes that no container uses, and the rest of interrupted removals. It returns the volumes'
// names.
func (s Store) Prune(ctx context.Context) (names []string, err error) {
	err = s.locked(ctx, func() error {
		left, err := filepath.Glob(filepath.Join(escapeGlob(s.Dir), trashName+"*"))
		for _, l := range left {
			err = errors.Join(err, os.RemoveAll(l))
		}
		all, lerr := s.List()
		err = errors.Join(err, lerr)
		for _, info := range all {
			switch rerr := s.remove(info.Name); {
			case rerr == nil:
				names = append(names, info.Name)
			case !errors.Is(rerr, ErrInUse):
				err = errors.Join(err, rerr)
			}
		}
		return err
	})
	return names, err
}

// escapeGlob escapes a path for use in a glob pattern.
func escapeGlob(path string) string {
	if os.PathSeparator == '\\' {
		return path // Windows patterns have no escape character
	}
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}
