package store

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"github.com/stratavm/strata/layerdir"
)

// Almost all layers are the same over any other layers. Exceptions are three kinds of entries: one below a directory
// without an entry in this layer that is a symbolic link in a lower layer, a hard link to a file of a lower layer, and
// a whiteout in a directory that the lower layers do not have. A layer that depends on the layers below is stored per
// chain, under the chain's id (a base layer under an id of its own); other layers are stored once.

// chainLayers finds the layers of an image that depend on those below, converts them, and marks them in img.
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
		} else if ok { // a layer that is not mounted may be missing
			below.Add(s.path(string(obj), f.File.FileName()), s.path(string(obj), outlineName))
		}
	}
	return nil
}

// chainLayer reports whether a layer depends on those below it, and converts it if so.
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
		// Outlines need not be read if an existing chain has answered the question.
		if settled, err := s.fits(ctx, chainObject(p.chainID, f), obj, f); settled || err != nil {
			return false, err
		}
		changes, err := o.Below.Changes(s.path(string(obj), outlineName))
		if errors.Is(err, fs.ErrNotExist) && p.layer == 0 {
			return false, nil
		}
		if errors.Is(err, fs.ErrNotExist) {
			s.o.Logger.Warn("a layer is of an earlier version: symbolic links of lower layers are not followed",
				"layer", p.diffID)
			return false, nil
		}
		if !changes || err != nil {
			return false, err
		}
	}
	return true, s.importLayer(ctx, r, p.layer, chained, o)
}
