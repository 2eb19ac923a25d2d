package store_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/store"
	"github.com/stratavm/strata/test/imagetest"
	"github.com/stratavm/strata/test/leaktest"
)

func gc(t testing.TB, s *store.Store) store.Removed {
	t.Helper()
	r, err := s.GC(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestGC: what an image needs stays, what leases and machines hold stays, the rest goes.
func TestGC(t *testing.T) {
	leaktest.Check(t)
	var inUse []string
	var inUseErr error
	s := open(t, t.TempDir(), store.Options{InUse: func(context.Context) ([]string, error) { return inUse, inUseErr }})
	a := mustImport(t, s, request(t, "a", 0, 3))
	mustImport(t, s, request(t, "b", 0, 2)) // its layers are a's lower two
	if r := gc(t, s); len(r.Objects) != 0 {
		t.Errorf("collected %v of images", r.Objects)
	}
	if err := s.Remove(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	dry, err := s.GC(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	if len(dry.Objects) != 2 || dry.Bytes == 0 {
		t.Errorf("dry run: %+v, want the top layer and its chain", dry)
	}
	// A lease of this process.
	lease, err := s.Lease(t.Context(), a, "test", "")
	if err != nil {
		t.Fatal(err)
	}
	if r := gc(t, s); len(r.Objects) != 0 || len(r.Held) != 2 {
		t.Errorf("collected %+v under a lease", r)
	}
	if err := errors.Join(lease.Release(), lease.Release()); err != nil {
		t.Fatal(err)
	}
	// A lease that lives as long as a folder.
	while := filepath.Join(t.TempDir(), "container")
	if err := os.Mkdir(while, 0o755); err != nil {
		t.Fatal(err)
	}
	if lease, err = s.Lease(t.Context(), a, "container", while); err != nil {
		t.Fatal(err)
	}
	if err := lease.Detach(); err != nil {
		t.Fatal(err)
	}
	if r := gc(t, s); len(r.Objects) != 0 || r.Held[dry.Objects[0]] != "container" {
		t.Errorf("collected %+v under a detached lease", r)
	}
	if err := os.Remove(while); err != nil {
		t.Fatal(err)
	}
	// What machines have mounted: a chain's folder, a layer's file.
	folders, err := s.Folders(a, erofs)
	if err != nil {
		t.Fatal(err)
	}
	file := layerFile(t, s, folders[0])
	inUse = []string{folders[0], "/elsewhere/layer.vhd"}
	if r := gc(t, s); len(r.Objects) != 0 {
		t.Errorf("collected %v of what a machine uses", r.Objects)
	}
	inUse = []string{file}
	if r := gc(t, s); len(r.Objects) != 1 || !strings.HasPrefix(r.Objects[0], "chains") {
		t.Errorf("collected %v, want the chain alone", r.Objects)
	}
	inUse, inUseErr = nil, errors.New("a machine does not answer")
	if _, err := s.GC(t.Context(), false); !errors.Is(err, inUseErr) {
		t.Errorf("collected without knowing what is in use: %v", err)
	}
	inUseErr = nil
	if r := gc(t, s); len(r.Objects) != 1 {
		t.Errorf("collected %v, want the layer", r.Objects)
	}
	if _, err := s.Lease(t.Context(), a, "late", ""); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("lease on a collected image: %v", err)
	}
	if r := whole(t, s); r.Layers != 2 {
		t.Errorf("%d layers are left, want b's 2", r.Layers)
	}
	if locks, err := os.ReadDir(filepath.Join(s.Dir(), "locks")); err != nil || len(locks) != 0 {
		t.Errorf("lock files left: %v, %v", locks, err)
	}
	if err := s.Remove(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	gc(t, s)
	if l, c := objects(t, s); l+c != 0 {
		t.Errorf("%d layers and %d chains are left of nothing", l, c)
	}
}

// TestGCDuringImport: a collection between any two steps of an import takes nothing away from it.
func TestGCDuringImport(t *testing.T) {
	dir := t.TempDir()
	other := open(t, dir, store.Options{})
	mustImport(t, other, request(t, "old", 0, 1))
	if err := other.Remove(t.Context(), "old"); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex // layers are made in parallel
	steps := 0
	s := open(t, dir, store.Options{Step: func(name string) {
		if name == "image" || name == "image committed" {
			return // under the lock of the store, where a collection waits
		}
		if name != "lease" { // before that the old layer may go
			mu.Lock()
			defer mu.Unlock()
			steps++
			gc(t, other)
		}
	}})
	img := mustImport(t, s, request(t, "new", 0, 3))
	if steps < 10 {
		t.Errorf("only %d steps were seen", steps)
	}
	if r := gc(t, s); len(r.Objects) != 0 {
		t.Errorf("collected %v of a new image", r.Objects)
	}
	whole(t, s)
	if _, err := s.Folders(img, erofs); err != nil {
		t.Error(err)
	}
}

// TestCheckAndRepair: every kind of damage is found, and mended by importing again.
func TestCheckAndRepair(t *testing.T) {
	for name, damage := range map[string]func(layer, chain string) error{
		"a byte": func(layer, _ string) error {
			f, err := os.OpenFile(layer, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte{0xa5}, 5000)
			return errors.Join(err, f.Close())
		},
		"truncated":   func(layer, _ string) error { return os.Truncate(layer, 4096) },
		"file gone":   func(layer, _ string) error { return os.Remove(layer) },
		"layer gone":  func(layer, _ string) error { return os.RemoveAll(filepath.Dir(layer)) },
		"record gone": func(layer, _ string) error { return os.Remove(filepath.Join(filepath.Dir(layer), "record.json")) },
		"chain gone":  func(_, chain string) error { return os.RemoveAll(chain) },
		"chain damaged": func(_, chain string) error {
			return os.WriteFile(filepath.Join(chain, "layerchain.json"), []byte("["), 0o644)
		},
		"link gone": func(_, chain string) error { return os.Remove(filepath.Join(chain, "layer.erofs")) },
		"root digest changed": func(layer, _ string) error {
			b, err := os.ReadFile(layer + ".verity.json")
			if err != nil {
				return err
			}
			return os.WriteFile(layer+".verity.json", bytes.ToUpper(b), 0o644)
		},
		"root digest gone": func(layer, _ string) error { return os.Remove(layer + ".verity.json") },
		"link to root digest gone": func(_, chain string) error {
			return os.Remove(filepath.Join(chain, "layer.erofs.verity.json"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir(), store.Options{})
			verity := store.Format{File: layerdir.EROFS, Verity: true}
			want := request(t, "a", 0, 3)
			want.Formats = []store.Format{verity}
			img := mustImport(t, s, want)
			mustImport(t, s, request(t, "untouched", 7, 1))
			folders, err := s.Folders(img, verity)
			if err != nil {
				t.Fatal(err)
			}
			layer := layerFile(t, s, folders[1])
			if err := damage(layer, folders[1]); err != nil {
				t.Fatal(err)
			}
			r, err := s.Check(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Problems) == 0 || len(r.Problems[0].Images) != 1 || r.Problems[0].Images[0] != "a" {
				t.Fatalf("problems %+v, want some of image a", r.Problems)
			}
			var again []string
			err = s.Repair(t.Context(), r, func(ctx context.Context, i store.Image) error {
				again = append(again, i.Name)
				_, err := s.Import(ctx, want)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(again) != 1 {
				t.Errorf("imported again: %v", again)
			}
			whole(t, s)
		})
	}
}

// TestRepairWithoutSource: what cannot be imported again is named.
func TestRepairWithoutSource(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{})
	mustImport(t, s, request(t, "a", 0, 1))
	file := filepath.Join(s.Dir(), "layers", "sha256", strings.TrimPrefix(imagetest.Digest(tarball(t, 0)), "sha256:"),
		"erofs", "layer.erofs")
	if err := os.Truncate(file, 100); err != nil {
		t.Fatal(err)
	}
	r, err := s.Check(t.Context())
	if err != nil || len(r.Problems) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	gone := errors.New("the archive is gone")
	err = s.Repair(t.Context(), r, func(context.Context, store.Image) error { return gone })
	if !errors.Is(err, gone) || !strings.Contains(err.Error(), "file:/none") {
		t.Errorf("error %v, want %v with the source", err, gone)
	}
}
