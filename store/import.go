package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/stratavm/strata/internal/lockfile"
	"github.com/stratavm/strata/layerdir"
)

// Layer is a layer to import.
type Layer struct {
	DiffID    string // digest of the tar
	Digest    string // of the blob it comes in; may be empty
	MediaType string
	Size      int64 // of the blob; -1: not known
	// Open gives the tar, uncompressed. The stream must return io.EOF only when it was found to be the tar
	// of DiffID: that is what makes the store commit it. progress is to be told the bytes of the blob read.
	Open func(ctx context.Context, progress func(int64)) (io.ReadCloser, error)
}

// Request says what Import imports.
type Request struct {
	Name     string // what the image is called in the store; one of the same name is replaced
	Digest   string
	Source   string
	Platform string
	Created  time.Time
	Manifest []byte // JSON, or empty
	Config   []byte // JSON, or empty
	Layers   []Layer
	// Formats that the layers are wanted in. None: EROFS.
	Formats []Format
	// MaxLayerBytes limits the unpacked size of each layer; 0: the converter's limit.
	MaxLayerBytes int64
	// Progress is told of every layer. It may be called concurrently, and must not take long.
	Progress func(Event)
}

// State is how far a layer has come.
type State string

// The states that events tell.
const (
	Reading State = "reading" // Done of Size bytes of the blob were read and converted
	Done    State = "done"    // it was converted
	Present State = "present" // it was there already, or somebody else converted it
)

// Event tells of one layer.
type Event struct {
	Layer  int // index, base first
	Count  int // of layers
	DiffID string
	Digest string
	State  State
	Done   int64
	Size   int64 // -1: not known
}

// record is what is kept beside the file of a layer.
type record struct {
	DiffID   string    `json:"diffID"`
	Format   string    `json:"format"`
	Bytes    int64     `json:"bytes"`
	Hash     string    `json:"hash"`             // see hashFile and hashTree
	Verity   string    `json:"verity,omitempty"` // the same of the record of the hash tree
	Imported time.Time `json:"imported"`
}

// Import puts an image into the store. Layers that are there already are not read; others are converted
// in parallel, each by one goroutine of one process. When it fails nothing of what it was making is
// left; layers that were complete stay until GC, so that the next attempt need not make them again.
func (s *Store) Import(ctx context.Context, r Request) (Image, error) {
	img, err := s.doImport(ctx, r)
	if err != nil {
		return Image{}, fmt.Errorf("import %s: %w", r.Name, err)
	}
	return img, nil
}

func (s *Store) doImport(ctx context.Context, r Request) (img Image, err error) {
	if r.Name == "" {
		return img, fmt.Errorf("%w: the image has no name", ErrInvalid)
	}
	if len(r.Formats) == 0 {
		r.Formats = []Format{{File: layerdir.EROFS}}
	}
	if r.Progress == nil {
		r.Progress = func(Event) {}
	}
	img = Image{Name: r.Name, Digest: r.Digest, Source: r.Source, Platform: r.Platform, Created: r.Created, Imported: now(),
		Manifest: r.Manifest, Config: r.Config}
	for _, l := range r.Layers {
		if err := checkDigest(l.DiffID); err != nil {
			return img, err
		}
		img.Layers = append(img.Layers, ImageLayer{DiffID: l.DiffID, Digest: l.Digest, MediaType: l.MediaType, Size: l.Size})
	}
	for _, f := range r.Formats {
		if _, err := ParseFormat(f.String()); err != nil {
			return img, err
		}
		if !slices.Contains(img.Formats, f.String()) {
			img.Formats = append(img.Formats, f.String())
		}
	}
	slices.Sort(img.Formats)
	s.step("lease")
	lease, err := s.hold(ctx, fmt.Sprintf("import of %s by process %d", r.Name, os.Getpid()), "", img.objects())
	if err != nil {
		return img, err
	}
	defer func() { err = errors.Join(err, lease.Release()) }()
	if err := s.importLayers(ctx, r); err != nil {
		return img, err
	}
	for _, name := range img.Formats {
		f, err := ParseFormat(name)
		if err != nil {
			return img, err
		}
		if err := s.putChains(ctx, img, f); err != nil {
			return img, err
		}
	}
	if old, err := readImage(s.imagePath(img.Name)); err == nil && old.Digest == img.Digest {
		// It stays available in the formats that it had.
		img.Formats = append(img.Formats, old.Formats...)
		slices.Sort(img.Formats)
		img.Formats = slices.Compact(img.Formats)
	}
	// Under the lock: what is kept from before must not be collected just now.
	if err := s.with(ctx, true, func() error { return s.putImage(img) }); err != nil {
		return img, err
	}
	s.step("release")
	return img, nil
}

// importLayers makes the layers that are missing.
func (s *Store) importLayers(ctx context.Context, r Request) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(s.o.Jobs)
	seen := map[object]bool{}
	for i, l := range r.Layers {
		for _, f := range r.Formats {
			obj := layerObject(l.DiffID, f)
			if seen[obj] {
				continue
			}
			seen[obj] = true
			g.Go(func() error {
				tell := func(st State, n int64) {
					r.Progress(Event{Layer: i, Count: len(r.Layers), DiffID: l.DiffID, Digest: l.Digest, State: st, Done: n, Size: l.Size})
				}
				made, err := s.putLayer(ctx, obj, l, f, r.MaxLayerBytes, tell)
				if err != nil {
					return fmt.Errorf("layer %d of %d: %w", i+1, len(r.Layers), err)
				}
				if made {
					tell(Done, l.Size)
				} else {
					tell(Present, l.Size)
				}
				return nil
			})
		}
	}
	return g.Wait()
}

func (s *Store) has(obj object) (bool, error) {
	_, err := os.Stat(s.path(string(obj)))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// putLayer makes sure that the layer is there, and reports whether it was made here.
func (s *Store) putLayer(ctx context.Context, obj object, l Layer, f Format, limit int64, tell func(State, int64)) (bool, error) {
	if ok, err := s.has(obj); ok || err != nil {
		return false, err
	}
	var made atomic.Bool
	err := s.flights.do(ctx, obj, func(ctx context.Context) error {
		lock, err := lockfile.Wait(ctx, s.path(locksDir, l.DiffID[len(digestPrefix):]+"-"+f.String()), false)
		if err != nil {
			return explain(err)
		}
		if ok, err := s.has(obj); ok || err != nil {
			return errors.Join(err, lockfile.Drop(lock))
		}
		err = s.makeLayer(ctx, obj, l, f, limit, func(n int64) { tell(Reading, n) })
		made.Store(err == nil)
		return errors.Join(err, lockfile.Drop(lock))
	})
	return made.Load(), err
}

// makeLayer converts a layer in a folder of its own and renames that to its place.
func (s *Store) makeLayer(ctx context.Context, obj object, l Layer, f Format, limit int64, progress func(int64)) (err error) {
	s.step("layer")
	t, err := s.newTemp()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.remove()) }()
	s.step("temp")
	in, err := l.Open(ctx, progress)
	if err != nil {
		return err
	}
	out := filepath.Join(t.dir, "layer")
	// A bare or sloppily written tar may lack its end; here the digest says whether it is whole.
	res, err := s.o.Convert(ctx, layerdir.Options{Format: f.File, Verity: f.Verity, Tar: in, Dir: out, MaxBytes: limit,
		AllowUnterminated: true, Share: s.o.Share})
	if err == nil {
		err = drain(in)
	}
	if err := errors.Join(err, in.Close()); err != nil {
		return explain(err)
	}
	s.step("converted")
	sum, err := hashLayer(ctx, f, res.Path)
	if err != nil {
		return err
	}
	rec := record{DiffID: l.DiffID, Format: f.String(), Bytes: res.Bytes, Hash: sum, Imported: now()}
	if f.Verity {
		if rec.Verity, err = hashFile(ctx, filepath.Join(out, f.File.VerityFileName())); err != nil {
			return err
		}
	}
	b, err := json.MarshalIndent(rec, "", " ")
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(out, recordName), append(b, '\n')); err != nil {
		return err
	}
	if err := syncDir(out); err != nil {
		return err
	}
	s.step("recorded")
	if err := commit(out, s.path(string(obj))); err != nil {
		return err
	}
	s.step("layer committed")
	return nil
}

// drain reads the rest of the stream: its io.EOF is the verdict on all of it, and a converter need not
// have waited for that.
func drain(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

// putChains makes the folders of an image's layers, base first.
func (s *Store) putChains(ctx context.Context, img Image, f Format) error {
	diffIDs := img.chain()
	ids := chainIDs(diffIDs)
	for i, id := range ids {
		if ok, err := s.has(chainObject(id, f)); err != nil {
			return err
		} else if ok {
			continue
		}
		parents := make([]string, 0, i)
		for _, p := range slices.Backward(ids[:i]) {
			rel, err := filepath.Rel(string(chainObject(id, f)), string(chainObject(p, f)))
			if err != nil {
				return err
			}
			parents = append(parents, rel)
		}
		if err := s.putChain(ctx, chainObject(id, f), layerObject(diffIDs[i], f), parents); err != nil {
			return fmt.Errorf("folder of layer %d: %w", i+1, err)
		}
	}
	return nil
}

func (s *Store) putChain(ctx context.Context, chain, layer object, parents []string) error {
	return s.flights.do(ctx, chain, func(context.Context) (err error) {
		t, err := s.newTemp()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, t.remove()) }()
		out := filepath.Join(t.dir, "chain")
		if err := os.Mkdir(out, 0o755); err != nil {
			return explain(err)
		}
		files, err := os.ReadDir(s.path(string(layer)))
		if err != nil {
			return err
		}
		for _, e := range files {
			if e.Name() == recordName {
				continue
			}
			if err := s.link(filepath.Join(string(layer), e.Name()), filepath.Join(out, e.Name()), chain); err != nil {
				return explain(err)
			}
		}
		if err := layerdir.WriteChain(out, parents); err != nil {
			return err
		}
		s.step("chain")
		err = commit(out, s.path(string(chain)))
		if err != nil {
			// Another process may have been quicker: its folder is the same.
			if ok, herr := s.has(chain); ok && herr == nil {
				return nil
			}
			return err
		}
		s.step("chain committed")
		return nil
	})
}

// link makes a symbolic link to a file of the store, relative to where the link will be in the end; on
// Windows, where users may not make such links, a hard link.
func (s *Store) link(target, at string, chain object) error {
	if runtime.GOOS == "windows" {
		return os.Link(s.path(target), at)
	}
	rel, err := filepath.Rel(string(chain), target)
	if err != nil {
		return err
	}
	return os.Symlink(rel, at)
}
