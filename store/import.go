package store

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"golang.org/x/sync/errgroup"

	"github.com/stratavm/strata/internal/atomicfile"
	"github.com/stratavm/strata/internal/lockfile"
	"github.com/stratavm/strata/internal/span"
	"github.com/stratavm/strata/layerdir"
)

// Layer is a layer to import: an image.Layer, or anything else that can be read as a tar. See ImageLayer.
type Layer struct {
	DiffID    string // digest of the uncompressed tar
	Digest    string // digest of the blob; may be empty
	MediaType string
	Size      int64 // size of the blob in bytes; -1: unknown
	// Open returns the uncompressed tar. The stream must verify DiffID: it must return io.EOF only if the digest
	// matches, as the store then commits the layer. progress must be called with the number of bytes read of the blob.
	Open func(ctx context.Context, progress func(int64)) (io.ReadCloser, error)
}

// Request describes an image to import.
type Request struct {
	Name     string // name in the store; an image of that name is replaced
	Digest   string
	Source   string
	Platform string
	Created  time.Time
	Manifest []byte // JSON, or empty
	Config   []byte // JSON, or empty
	Layers   []Layer
	// Formats to convert the layers to. None: EROFS.
	Formats []Format
	// MaxLayerBytes bounds the unpacked size of each layer; 0: the converter's limit.
	MaxLayerBytes int64
	// MaxImageBytes bounds the unpacked size of the layers that this import converts, together, in each format; 0:
	// layerdir.DefaultMaxImageBytes, or MaxLayerBytes if that is larger. Layers that are in the store already do not
	// count, and layers that depend on those below are counted apart from the others.
	MaxImageBytes int64
	// Progress, if not nil, is called with events of the layers. It may be called concurrently, and must not block.
	Progress func(Event)
}

// State is the state of a layer's import.
type State string

// The states of an Event.
const (
	Reading State = "reading" // Done of Size bytes of the blob have been read and converted
	Done    State = "done"    // the layer has been converted
	Present State = "present" // the layer existed already, or another caller has converted it
)

// Event is a progress report about one layer.
type Event struct {
	Layer  int // index, base first
	Count  int // number of layers
	DiffID string
	Digest string
	State  State
	Done   int64
	Size   int64 // -1: unknown
}

// record is the metadata stored with a layer.
type record struct {
	DiffID   string    `json:"diffID"`
	Format   string    `json:"format"`
	Bytes    int64     `json:"bytes"`
	Hash     string    `json:"hash"`              // see sumFile and hashTree
	Verity   string    `json:"verity,omitempty"`  // digest of the hash tree's record, see hashFile
	Outline  string    `json:"outline,omitempty"` // digest of the outline, see sumFile
	Imported time.Time `json:"imported"`
}

// Import imports an image. Layers that are already in the store are not read; others are converted in parallel, each
// by one goroutine of one process. On failure, incomplete layers are removed; complete ones stay until GC, so that the
// next attempt need not convert them again.
func (s *Store) Import(ctx context.Context, r Request) (Image, error) {
	ctx, sp := span.Start(ctx, "strata.import", attribute.String("strata.image", r.Name))
	img, err := s.doImport(ctx, r)
	span.End(sp, err)
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
	if r.MaxImageBytes == 0 {
		r.MaxImageBytes = max(layerdir.DefaultMaxImageBytes, r.MaxLayerBytes)
	}
	img = Image{Name: r.Name, Digest: r.Digest, Source: r.Source, Platform: r.Platform,
		Created: r.Created, Imported: now(), Manifest: r.Manifest, Config: r.Config}
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
	lease, err := s.hold(ctx, fmt.Sprintf("import of %s by process %d", r.Name, os.Getpid()), "", img.possible())
	if err != nil {
		return img, err
	}
	defer func() { err = errors.Join(err, lease.Release()) }()
	if err := s.importLayers(ctx, r, img); err != nil {
		return img, err
	}
	for _, name := range img.Formats {
		f, err := ParseFormat(name)
		if err != nil {
			return img, err
		}
		if err := s.chainLayers(ctx, r, &img, f); err != nil {
			return img, err
		}
		if err := s.putChains(ctx, img, f); err != nil {
			return img, err
		}
	}
	if old, err := readImage(s.imagePath(img.Name)); err == nil && old.Digest == img.Digest {
		img.keepFormats(old)
	}
	// Under the lock, so that objects kept from before are not collected in the meantime.
	if err := s.with(ctx, true, func() error {
		if old, err := readImage(s.imagePath(img.Name)); err == nil && old.same(img) {
			img = old // as for each run of an image from another store: skip writing and syncing
			return nil
		}
		return s.putImage(img)
	}); err != nil {
		return img, err
	}
	s.step("release")
	return img, nil
}

// keepFormats keeps the formats in which the image was already stored.
func (i *Image) keepFormats(old Image) {
	for n, l := range old.Layers {
		for _, f := range l.Chained {
			if !slices.Contains(i.Formats, f) && n < len(i.Layers) {
				i.Layers[n].Chained = append(i.Layers[n].Chained, f)
			}
		}
	}
	i.Formats = append(i.Formats, old.Formats...)
	slices.Sort(i.Formats)
	i.Formats = slices.Compact(i.Formats)
}

// importLayers converts the missing layers on their own. Those that need the layers below are left to chainLayers.
func (s *Store) importLayers(ctx context.Context, r Request, img Image) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(s.o.Jobs)
	seen := map[object]bool{}
	budgets := map[Format]*layerdir.Budget{}
	for _, f := range r.Formats {
		budgets[f] = layerdir.NewBudget(r.MaxImageBytes)
	}
	for _, p := range img.stack() {
		for _, f := range r.Formats {
			obj := layerObject(p.diffID, f)
			if seen[obj] {
				continue
			}
			seen[obj] = true
			g.Go(func() error {
				if ok, err := s.has(layerObject(p.ownID, f)); ok || err != nil {
					if ok {
						r.tell(p.layer, Present, r.Layers[p.layer].Size)
					}
					return err
				}
				err := s.importLayer(ctx, r, p.layer, obj, layerdir.Options{Format: f.File, Verity: f.Verity,
					Image: budgets[f]})
				if p.layer > 0 && errors.Is(err, layerdir.ErrNeedsBelow) {
					return nil
				}
				return err
			})
		}
	}
	return g.Wait()
}

// tell reports the progress of layer n.
func (r Request) tell(n int, st State, done int64) {
	l := r.Layers[n]
	r.Progress(Event{Layer: n, Count: len(r.Layers), DiffID: l.DiffID, Digest: l.Digest,
		State: st, Done: done, Size: l.Size})
}

// importLayer converts one layer if it is missing.
func (s *Store) importLayer(ctx context.Context, r Request, n int, obj object, o layerdir.Options) error {
	l := r.Layers[n]
	tell := func(st State, done int64) { r.tell(n, st, done) }
	o.MaxBytes = r.MaxLayerBytes
	made, err := s.putLayer(ctx, obj, l, o, tell)
	if err != nil {
		return fmt.Errorf("layer %d of %d: %w", n+1, len(r.Layers), err)
	}
	if made {
		tell(Done, l.Size)
	} else {
		tell(Present, l.Size)
	}
	return nil
}

func (s *Store) has(obj object) (bool, error) {
	_, err := os.Stat(s.path(string(obj)))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// putLayer converts a layer if it is missing, and reports whether this call did.
func (s *Store) putLayer(ctx context.Context, obj object, l Layer, o layerdir.Options,
	tell func(State, int64)) (bool, error) {
	if ok, err := s.has(obj); ok || err != nil {
		return false, err
	}
	var made atomic.Bool
	err := s.flights.do(ctx, obj, func(ctx context.Context) error {
		lock, err := lockfile.Wait(ctx, s.path(locksDir, obj.lockName()), false)
		if err != nil {
			return explain(err)
		}
		if ok, err := s.has(obj); ok || err != nil {
			return errors.Join(err, lockfile.Drop(lock))
		}
		err = span.Do(ctx, "strata.import.layer", func(ctx context.Context) error {
			return s.makeLayer(ctx, obj, l, o, func(n int64) { tell(Reading, n) })
		}, attribute.String("strata.layer", l.DiffID), attribute.Int64("strata.bytes", l.Size))
		made.Store(err == nil)
		return errors.Join(err, lockfile.Drop(lock))
	})
	return made.Load(), err
}

// makeLayer converts a layer in a temporary folder and renames it to its final place.
func (s *Store) makeLayer(ctx context.Context, obj object, l Layer, o layerdir.Options,
	progress func(int64)) (err error) {
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
	// Accept a tar without its end marker: the digest tells whether it is complete.
	o.Tar, o.Dir, o.AllowUnterminated, o.Share = in, filepath.Join(t.dir, "layer"), true, s.o.Share
	outline := filepath.Join(t.dir, outlineName)
	res, err := s.convert(ctx, o, outline)
	if err == nil {
		err = drain(in)
	}
	if err := errors.Join(err, in.Close()); err != nil {
		return explain(err)
	}
	s.step("converted")
	if err := os.Rename(outline, filepath.Join(o.Dir, outlineName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return explain(err)
	}
	var rec record
	if err := span.Do(ctx, "strata.import.digest", func(ctx context.Context) (err error) {
		rec, err = newRecord(ctx, l, o, res)
		return err
	}); err != nil {
		return err
	}
	b, err := json.MarshalIndent(rec, "", " ")
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(o.Dir, recordName), append(b, '\n')); err != nil {
		return err
	}
	if err := atomicfile.SyncDir(o.Dir); err != nil {
		return err
	}
	s.step("recorded")
	if err := commit(o.Dir, s.path(string(obj))); err != nil {
		return err
	}
	s.step("layer committed")
	return nil
}

// convert creates the layer and its outline; there is no outline if the converter does not write one.
func (s *Store) convert(ctx context.Context, o layerdir.Options, outline string) (res layerdir.Result, err error) {
	f, err := os.OpenFile(outline, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return res, err
	}
	w := bufio.NewWriter(f)
	o.Outline = w
	if res, err = s.o.Convert(ctx, o); err == nil {
		err = errors.Join(w.Flush(), f.Sync())
	}
	st, serr := f.Stat()
	if err := errors.Join(err, serr, f.Close()); err != nil {
		return res, err
	}
	if st.Size() == 0 {
		return res, os.Remove(outline)
	}
	return res, nil
}

// newRecord returns the record of a converted layer, with its digests.
func newRecord(ctx context.Context, l Layer, o layerdir.Options, res layerdir.Result) (record, error) {
	f := Format{File: o.Format, Verity: o.Verity}
	rec := record{DiffID: l.DiffID, Format: f.String(), Bytes: res.Bytes, Imported: now()}
	var err error
	if rec.Hash, err = hashLayer(ctx, f, res.Path); err != nil {
		return rec, err
	}
	rec.Outline, err = sumFile(ctx, filepath.Join(o.Dir, outlineName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return rec, err
	}
	if f.Verity {
		if rec.Verity, err = hashFile(ctx, filepath.Join(o.Dir, f.File.VerityFileName())); err != nil {
			return rec, err
		}
	}
	return rec, nil
}

// drain reads the rest of the stream: it verifies the digest at its end, which a converter need not read.
func drain(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}
