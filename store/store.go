package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/stratavm/strata/internal/atomicfile"
	"github.com/stratavm/strata/layerdir"
)

// Errors of this package match these with errors.Is.
var (
	// ErrNotFound: the image or layer is not in the store.
	ErrNotFound = errors.New("not in the store")
	// ErrAmbiguous: several images match a shortened digest.
	ErrAmbiguous = errors.New("several images fit")
	// ErrInvalid: the argument is invalid.
	ErrInvalid = errors.New("invalid")
	// ErrDamaged: an object on disk has changed or is incomplete.
	ErrDamaged = errors.New("damaged")
)

// Converter creates a layer in o.Dir; layerdir.Convert is one.
type Converter func(ctx context.Context, o layerdir.Options) (layerdir.Result, error)

// Options are the options of Open.
type Options struct {
	Convert Converter    // nil: layerdir.Convert
	Logger  *slog.Logger // nil: nothing is logged
	// InUse returns the host paths of layer folders or files that virtual machines have mounted; they may be outside
	// of the store. GC does not remove them; if InUse fails, GC removes nothing.
	InUse func(ctx context.Context) ([]string, error)
	// Share is [layerdir.Options.Share] for all layers.
	Share func(ctx context.Context, file string) error
	// Jobs is how many layers are converted concurrently; 0: one per processor.
	Jobs int
	// Step, if not nil, is called before each step that changes the store. It is for tests that kill the process at
	// each step.
	Step func(name string)
}

// Store is an open store. Its methods may be called concurrently, and other processes may have the same
// store open.
type Store struct {
	dir     string
	o       Options
	flights flights
}

// Folders of the store.
const (
	layersDir    = "layers"
	chainsDir    = "chains"
	imagesDir    = "images"
	leasesDir    = "leases"
	locksDir     = "locks"
	templatesDir = "templates"
	tmpDir       = "tmp"
	lockName     = "lock"
	recordName   = "record.json"
	outlineName  = "outline" // of the layer: see layerdir.Options.Outline
)

// Open opens the store in dir, creating it if needed, and removes what killed processes left incomplete. The store is
// private: folders have mode 0700 and files 0600; layer files have 0644, which the folders protect. Virtual machines
// and user namespaces that run as other users are passed descriptors.
func Open(ctx context.Context, dir string, o Options) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if o.Convert == nil {
		o.Convert = layerdir.Convert
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Jobs <= 0 {
		o.Jobs = runtime.GOMAXPROCS(0)
	}
	s := &Store{dir: abs, o: o}
	for _, d := range []string{layersDir, chainsDir, imagesDir, leasesDir, locksDir, tmpDir} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return nil, fmt.Errorf("open store %s: %w", abs, explain(err))
		}
	}
	if err := private(abs); err != nil {
		return nil, fmt.Errorf("open store %s: %w", abs, err)
	}
	// Resolve links, so that paths of the store can be compared with those that machines report.
	if s.dir, err = filepath.EvalSymlinks(abs); err != nil {
		return nil, fmt.Errorf("open store %s: %w", abs, err)
	}
	if err := s.sweep(ctx); err != nil {
		return nil, fmt.Errorf("open store %s: remove temporary folders: %w", abs, err)
	}
	return s, nil
}

// private makes the folder of a store private: layers contain set-user-ID programs and secrets, records say what is
// mounted. Earlier versions left its mode to the umask.
func private(dir string) error {
	st, err := os.Stat(dir)
	if err != nil || runtime.GOOS == "windows" || st.Mode().Perm()&0o077 == 0 {
		return err
	}
	return explain(os.Chmod(dir, 0o700))
}

// Dir returns the folder of the store.
func (s *Store) Dir() string { return s.dir }

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *Store) step(name string) {
	if s.o.Step != nil {
		s.o.Step(name)
	}
}

// Format is a format in which layers are stored.
type Format struct {
	File   layerdir.Format
	Verity bool // with a dm-verity hash tree
}

const veritySuffix = "+verity"

// String returns the format's name, which is part of paths.
func (f Format) String() string {
	if f.Verity {
		return string(f.File) + veritySuffix
	}
	return string(f.File)
}

// ParseFormat parses the result of String.
func ParseFormat(s string) (Format, error) {
	file, v := strings.CutSuffix(s, veritySuffix)
	f := Format{File: layerdir.Format(file), Verity: v}
	if f.File != layerdir.VHD && f.File != layerdir.EROFS && (f.File != layerdir.Tree || v) {
		return Format{}, fmt.Errorf("%w: layer format %q: use vhd, erofs, vhd%s, erofs%s or dir",
			ErrInvalid, s, veritySuffix, veritySuffix)
	}
	return f, nil
}

const digestPrefix = "sha256:"

// checkDigest returns an error unless d is a valid digest, which may be part of a path.
func checkDigest(d string) error {
	h, ok := strings.CutPrefix(d, digestPrefix)
	if !ok || len(h) != 64 || strings.Trim(h, "0123456789abcdef") != "" {
		return fmt.Errorf("%w: digest %q: want sha256: and 64 hexadecimal digits", ErrInvalid, d)
	}
	return nil
}

// object is a unit of garbage collection: its path relative to the store.
type object string

func layerObject(diffID string, f Format) object { return newObject(layersDir, diffID, f) }
func chainObject(chain string, f Format) object  { return newObject(chainsDir, chain, f) }

func newObject(kind, digest string, f Format) object {
	return object(filepath.Join(kind, "sha256", strings.TrimPrefix(digest, digestPrefix), f.String()))
}

// lockName returns the name of the lock that is held while the layer is converted.
func (o object) lockName() string {
	return filepath.Base(filepath.Dir(string(o))) + "-" + filepath.Base(string(o))
}

// explain adds a remedy to errors that the user can fix.
func explain(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("%w: free some space (strata image rm, strata store gc)", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: use a state directory of your own, or run as the owner of this one", err)
	}
	return err
}

// writeFile creates, writes and syncs a file.
func writeFile(path string, b []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return explain(err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(b); err != nil {
		return explain(err)
	}
	return explain(f.Sync())
}

// commit renames a folder or a file to its final place and syncs the parents.
func commit(from, to string) error {
	parent := filepath.Dir(to)
	for attempt := 0; ; attempt++ {
		if err := os.MkdirAll(parent, 0o700); err != nil {
			return explain(err)
		}
		err := os.Rename(from, to)
		if err == nil {
			break
		}
		// A garbage collection may have removed the empty parent in between.
		if !errors.Is(err, fs.ErrNotExist) || attempt == 3 {
			return explain(err)
		}
	}
	// The parent folders may be new as well: layers/sha256/<id>.
	return errors.Join(atomicfile.SyncDir(parent), atomicfile.SyncDir(filepath.Dir(parent)),
		atomicfile.SyncDir(filepath.Dir(filepath.Dir(parent))))
}

// Scratch creates a scratch folder from a template in the store; on Windows, which has no tool for ext4, a scratch
// that the guest formats. See layerdir.CreateScratch.
func (s *Store) Scratch(ctx context.Context, dir string, size int64) (string, error) {
	return layerdir.CreateScratch(ctx, layerdir.ScratchOptions{
		Dir: dir, Size: size, CacheDir: s.path(templatesDir), Unformatted: runtime.GOOS == "windows",
	})
}

func now() time.Time { return time.Now().UTC().Truncate(time.Second) }
