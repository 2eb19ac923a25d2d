package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/stratavm/strata/layerdir"
)

// putChains creates the chain folders of an image, base first.
func (s *Store) putChains(ctx context.Context, img Image, f Format) error {
	stack := img.stack()
	for i, p := range stack {
		chain, layer := chainObject(p.chainID, f), img.object(p, f)
		if ok, err := s.fits(ctx, chain, layer, f); err != nil {
			return err
		} else if ok {
			continue
		}
		parents := make([]string, 0, i)
		for _, q := range slices.Backward(stack[:i]) {
			rel, err := filepath.Rel(string(chain), string(chainObject(q.chainID, f)))
			if err != nil {
				return err
			}
			parents = append(parents, rel)
		}
		if err := s.putChain(ctx, chain, layer, parents); err != nil {
			return fmt.Errorf("folder of layer %d: %w", i+1, err)
		}
	}
	return nil
}

// fits reports whether a chain exists and links to the layer. If it links to another one, it is discarded: its layer
// turned out to depend on those below.
func (s *Store) fits(ctx context.Context, chain, layer object, f Format) (bool, error) {
	if ok, err := s.has(chain); !ok || err != nil {
		return false, err
	}
	name := f.File.FileName()
	want, err := os.Stat(s.path(string(layer), name))
	if err != nil {
		return false, err
	}
	got, err := os.Stat(s.path(string(chain), name))
	if err == nil && os.SameFile(want, got) {
		return true, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return false, s.discard(ctx, chain)
}

func (s *Store) putChain(ctx context.Context, chain, layer object, parents []string) error {
	return s.flights.do(ctx, chain, func(context.Context) (err error) {
		t, err := s.newTemp()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, t.remove()) }()
		out := filepath.Join(t.dir, "chain")
		if err := os.Mkdir(out, 0o700); err != nil {
			return explain(err)
		}
		files, err := os.ReadDir(s.path(string(layer)))
		if err != nil {
			return err
		}
		for _, e := range files {
			if e.Name() == recordName || e.Name() == outlineName {
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
			// Another process may have been faster: its folder is the same.
			if ok, herr := s.has(chain); ok && herr == nil {
				return nil
			}
			return err
		}
		s.step("chain committed")
		return nil
	})
}

// link creates a symbolic link to a file of the store, relative to the link's final location; on Windows, where users
// may not create symbolic links, a hard link.
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
