package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/layerdir"
)

const maxLayerRecord = 1 << 20 // bytes

// Problem is a fault that Check found.
type Problem struct {
	Object string   `json:"object"`           // relative to the store
	Reason string   `json:"reason"`           // human-readable
	Images []string `json:"images,omitempty"` // images that need the object

	obj object
}

// Report is the result of Check.
type Report struct {
	Layers   int       `json:"layers"` // layers read
	Bytes    int64     `json:"bytes"`
	Images   int       `json:"images"`
	Problems []Problem `json:"problems"`
}

// Check reads every layer and compares it with the digest computed when it was imported, and checks that each image
// has all of its layers and that the chains are valid. Problems are in the report; an error says that the check could
// not be completed.
func (s *Store) Check(ctx context.Context) (Report, error) {
	r := Report{Problems: []Problem{}}
	fail := func(err error) (Report, error) { return r, fmt.Errorf("check the store %s: %w", s.dir, err) }
	images, err := s.Images()
	if err != nil {
		r.Problems = append(r.Problems, Problem{Object: imagesDir, Reason: err.Error()})
	}
	r.Images = len(images)
	users := map[object][]string{}
	for _, img := range images {
		for _, o := range img.objects() {
			users[o] = append(users[o], img.Name)
		}
	}
	var all []object
	for _, kind := range []string{layersDir, chainsDir} {
		list, err := s.list(kind)
		if err != nil {
			return fail(err)
		}
		all = append(all, list...)
	}
	there := map[object]bool{}
	type finding struct {
		bytes int64
		err   error
	}
	found := make([]finding, len(all))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(s.o.Jobs)
	for i, o := range all {
		there[o] = true
		g.Go(func() error {
			n, err := s.checkObject(gctx, o)
			if gctx.Err() != nil {
				return context.Cause(gctx)
			}
			found[i] = finding{n, err}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return fail(err)
	}
	for i, o := range all {
		if strings.HasPrefix(string(o), layersDir) {
			r.Layers++
			r.Bytes += found[i].bytes
		}
		if err := found[i].err; err != nil {
			if ok, herr := s.has(o); herr == nil && !ok {
				continue // garbage collected in the meantime
			}
			p := Problem{string(o), err.Error(), users[o], o}
			if errors.Is(err, layerdir.ErrOtherIDs) {
				p.obj, p.Images = "", nil // not damaged, as far as can be told here: nothing to repair
			}
			r.Problems = append(r.Problems, p)
		}
	}
	for _, img := range images {
		for _, o := range img.objects() {
			if !there[o] {
				there[o] = true // report it once
				r.Problems = append(r.Problems, Problem{string(o), "missing", users[o], o})
			}
		}
	}
	return r, nil
}

func (s *Store) checkObject(ctx context.Context, o object) (int64, error) {
	if strings.HasPrefix(string(o), layersDir) {
		return s.checkLayer(ctx, s.path(string(o)))
	}
	return 0, s.checkChain(s.path(string(o)))
}

// readRecord reads the record of the layer in dir.
func readRecord(dir string) (rec record, err error) {
	b, err := regfile.Read(filepath.Join(dir, recordName), maxLayerRecord)
	if err == nil {
		err = json.Unmarshal(b, &rec)
	}
	if err != nil {
		err = fmt.Errorf("%w: its record: %w", ErrDamaged, err)
	}
	return rec, err
}

func (s *Store) checkLayer(ctx context.Context, dir string) (int64, error) {
	rec, err := readRecord(dir)
	if err != nil {
		return 0, err
	}
	f, err := ParseFormat(rec.Format)
	if err != nil {
		return 0, err
	}
	path := filepath.Join(dir, f.File.FileName())
	st, err := os.Stat(path)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	size := st.Size()
	if f.File == layerdir.Tree {
		if err := layerdir.CheckTree(dir); errors.Is(err, layerdir.ErrOtherIDs) {
			return 0, err
		} else if err != nil {
			return 0, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		size = rec.Bytes // covered by the digest
	}
	if size != rec.Bytes {
		return 0, fmt.Errorf("%w: %s has %d bytes and had %d", ErrDamaged, f.File.FileName(), size, rec.Bytes)
	}
	same, err := checkFile(ctx, f, path, rec.Hash)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if !same {
		return size, fmt.Errorf("%w: the content of %s has changed", ErrDamaged, f.File.FileName())
	}
	if rec.Outline != "" {
		same, err := checkFile(ctx, Format{}, filepath.Join(dir, outlineName), rec.Outline)
		if err != nil {
			return size, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if !same {
			return size, fmt.Errorf("%w: the content of its %s has changed", ErrDamaged, outlineName)
		}
	}
	if f.Verity {
		// The record has the root digest that guests trust.
		sum, err := hashFile(ctx, filepath.Join(dir, f.File.VerityFileName()))
		if err != nil {
			return size, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if sum != rec.Verity {
			return size, fmt.Errorf("%w: the content of %s has changed", ErrDamaged, f.File.VerityFileName())
		}
	}
	return size, nil
}

func (s *Store) checkChain(dir string) error {
	parents, err := layerdir.ReadChain(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	for _, p := range parents {
		if _, err := os.Stat(filepath.Join(dir, p)); err != nil {
			return fmt.Errorf("%w: a parent is missing: %w", ErrDamaged, err)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	layers := 0
	for _, e := range files {
		if _, err := os.Stat(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("%w: its layer is missing: %w", ErrDamaged, err)
		}
		if n := e.Name(); n == layerdir.VHD.FileName() || n == layerdir.EROFS.FileName() || n == layerdir.Tree.FileName() {
			layers++
		}
	}
	if layers != 1 {
		return fmt.Errorf("%w: it holds %d layers, not one", ErrDamaged, layers)
	}
	if f, err := ParseFormat(filepath.Base(dir)); err != nil {
		return err
	} else if f.Verity {
		// Without it the layer would be mounted without verification.
		if _, err := os.Stat(filepath.Join(dir, f.File.VerityFileName())); err != nil {
			return fmt.Errorf("%w: its hash tree's record is missing: %w", ErrDamaged, err)
		}
	}
	return nil
}

// Repair removes the damaged objects that Check found and calls reimport for the images that need them. A virtual
// machine that has a damaged layer mounted keeps its open file. It tries everything and joins the errors.
func (s *Store) Repair(ctx context.Context, r Report, reimport func(context.Context, Image) error) error {
	var errs []error
	again := map[string]bool{}
	for _, p := range r.Problems {
		if p.obj != "" {
			if err := s.discard(ctx, p.obj); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		for _, name := range p.Images {
			again[name] = true
		}
	}
	images, err := s.Images()
	errs = append(errs, err)
	for _, img := range images {
		if !again[img.Name] {
			continue
		}
		if err := reimport(ctx, img); err != nil {
			errs = append(errs, fmt.Errorf("import %s again from %s: %w", img.Name, img.Source, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("repair the store: %w", err)
	}
	return nil
}

// discard removes an object, even if images need it.
func (s *Store) discard(ctx context.Context, o object) (err error) {
	t, err := s.newTemp()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.remove()) }()
	return s.with(ctx, false, func() error {
		err := os.Rename(s.path(string(o)), filepath.Join(t.dir, "discarded"))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}
