package store

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"github.com/stratavm/strata/layerdir"
)

// A layer is the same over all others, but for three kinds of entries: one in a directory without an entry of its
// own, where the layers below have a symbolic link, a hard link to a file below, and a whiteout in a directory that
// they do not have. A layer that depends on the layers below it is kept for its chain, by the chain's id; one that
// is another over nothing by an id of its own; the others are kept once.

// chainLayers finds out which layers of an image depend on those below, makes these, and notes them in img.
func (s *Store) chainLayers(ctx context.Context, r Request, img *Image, f Format) error {
	stack := img.stack()
	var below layerdir.Below
	budget := layerdir.NewBudget(r.MaxImageBytes)
	for n := range img.Layers {
		p := place{layer: n, diffID: img.Layers[n].DiffID}
		k := slices.IndexFunc(stack, func(q place) bool { return q.layer == n })
		if k >= 0 {
			p = stack[k]
			chained, err := s.chainLayer(ctx, r, p, f, layerdir.Options{Format: f.File, Verity: f.Verity, Below: &below,
				Image: budget})
			if err != nil {
				return err
			}
			if chained {
				img.Layers[n].Chained = append(img.Layers[n].Chained, f.String())
			}
		}
		obj := img.object(p, f)
		if ok, err := s.has(obj); err != nil {
			return err
		} else if ok { // one that is not mounted may be missing
			below.Add(s.path(string(obj), f.File.FileName()), s.path(string(obj), outlineName))
		}
	}
	return nil
}

// chainLayer reports whether a layer depends on those below it, and makes it then.
func (s *Store) chainLayer(ctx context.Context, r Request, p place, f Format, o layerdir.Options) (bool, error) {
	chained := layerObject(p.ownID, f)
	if ok, err := s.has(chained); ok || err != nil {
		return ok, err
	}
	obj := layerObject(p.diffID, f)
	ok, err := s.has(obj)
	if err != nil {
		return false, err
	}
	if ok {
		// Outlines need not be read where it was found out before.
		if settled, err := s.fits(ctx, chainObject(p.chainID, f), obj, f); settled || err != nil {
			return false, err
		}
		changes, err := o.Below.Changes(s.path(string(obj), outlineName))
		if errors.Is(err, fs.ErrNotExist) && p.layer == 0 {
			return false, nil
		}
		if errors.Is(err, fs.ErrNotExist) {
			s.o.Logger.Warn("a layer was made by an earlier version, so that links of the layers below are not followed",
				"layer", p.diffID)
			return false, nil
		}
		if !changes || err != nil {
			return false, err
		}
	}
	return true, s.importLayer(ctx, r, p.layer, chained, o)
}
