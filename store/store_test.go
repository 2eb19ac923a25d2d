package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/store"
	"github.com/stratavm/strata/test/leaktest"
)

func TestImport(t *testing.T) {
	leaktest.Check(t)
	s := open(t, filepath.Join(t.TempDir(), "store"), store.Options{})
	r := request(t, "app:1", 0, 3)
	r.Formats = []store.Format{erofs, vhd, {File: layerdir.EROFS, Verity: true}}
	var mu sync.Mutex
	done := map[store.State]int{}
	r.Progress = func(e store.Event) {
		mu.Lock()
		defer mu.Unlock()
		done[e.State]++
	}
	mustImport(t, s, r)
	if done[store.Done] != 9 || done[store.Present] != 0 {
		t.Errorf("events %v, want 9 layers done", done)
	}
	img, err := s.Find("app:1")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Formats {
		folders, err := s.Folders(img, f)
		if err != nil {
			t.Fatal(err)
		}
		if len(folders) != 3 {
			t.Fatalf("%s: folders %q, want 3", f, folders)
		}
		if err := layerdir.CheckChain(folders); err != nil {
			t.Errorf("%s: %v", f, err)
		}
		if err := layerdir.CheckChain([]string{folders[1], folders[0], folders[2]}); !errors.Is(err, layerdir.ErrChainOrder) {
			t.Errorf("%s: wrong order: %v", f, err)
		}
		for _, dir := range folders {
			if st, err := os.Stat(filepath.Join(dir, f.File.FileName())); err != nil || !st.Mode().IsRegular() ||
				st.Size() == 0 {
				t.Errorf("%s: %v, %v", f, st, err)
			}
			if _, err := layerdir.ReadVerity(dir, f.File); (err == nil) != f.Verity {
				t.Errorf("%s: verity record: %v", f, err)
			}
		}
	}
	if r := whole(t, s); r.Layers != 9 {
		t.Errorf("%d layers were checked, want 9", r.Layers)
	}
	if n := done[store.Done]; n != 9 {
		t.Errorf("%d layers done", n)
	}
	mustImport(t, s, r)
	if again, err := s.Find("app:1"); err != nil || again.Imported != img.Imported {
		t.Errorf("what was there already was written again: %v, %v", again.Imported, err)
	}
	if done[store.Done] != 9 || done[store.Present] != 9 {
		t.Errorf("events after the second import %v, want 9 layers present", done)
	}
}

// TestSameLayerTwice: in one image, of which the upper stays, and in two images on different parents.
func TestSameLayerTwice(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{})
	a, b, c := layer(tarball(t, 1)), layer(tarball(t, 2)), layer(tarball(t, 3))
	twice := mustImport(t, s, store.Request{Name: "twice", Layers: []store.Layer{a, b, a}})
	other := mustImport(t, s, store.Request{Name: "other", Layers: []store.Layer{c, a}})
	paths := map[string]int{}
	for _, img := range []store.Image{twice, other} {
		folders, err := s.Folders(img, erofs)
		if err != nil {
			t.Fatal(err)
		}
		if len(folders) != 2 {
			t.Errorf("%s: %d folders, want 2", img.Name, len(folders))
		}
		if err := layerdir.CheckChain(folders); err != nil {
			t.Error(err)
		}
		paths[layerFile(t, s, folders[0])]++
	}
	if len(paths) != 1 {
		t.Errorf("the layer that both have on top is not one file: %v", paths)
	}
	whole(t, s)
}

// TestOneConversion: many goroutines with stores of their own, and several on one store.
func TestOneConversion(t *testing.T) {
	leaktest.Check(t)
	var n atomic.Int32
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 4 {
		s := open(t, dir, store.Options{Convert: counting(&n)})
		for j := range 4 {
			r := request(t, fmt.Sprintf("image%d-%d", i, j), 0, 3)
			wg.Go(func() {
				if _, err := s.Import(t.Context(), r); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if n.Load() != 3 {
		t.Errorf("%d conversions of 3 layers", n.Load())
	}
	s := open(t, dir, store.Options{})
	if r := whole(t, s); r.Images != 16 || r.Layers != 3 {
		t.Errorf("%d images with %d layers, want 16 with 3", r.Images, r.Layers)
	}
}

// TestWaiters: who waits and gives up leaves nothing; when the one whose conversion it is gives up, the
// others carry on; a source that fails does not fail those who have a better one.
func TestWaiters(t *testing.T) {
	leaktest.Check(t)
	type plan struct {
		cancelFirst, firstFails, cancelAll bool
	}
	for name, p := range map[string]plan{
		"a waiter gives up": {}, "the first gives up": {cancelFirst: true}, "the first fails": {firstFails: true},
		"all give up": {cancelAll: true},
	} {
		t.Run(name, func(t *testing.T) {
			entered, goOn := make(chan struct{}), make(chan struct{})
			var once sync.Once
			convert := func(ctx context.Context, o layerdir.Options) (layerdir.Result, error) {
				first := false
				once.Do(func() { first = true; close(entered) })
				if first {
					select {
					case <-goOn:
					case <-ctx.Done():
						return layerdir.Result{}, ctx.Err()
					}
					if p.firstFails {
						return layerdir.Result{}, errors.New("bad source")
					}
				}
				return layerdir.Convert(ctx, o)
			}
			s := open(t, t.TempDir(), store.Options{Convert: convert})
			start := func(ctx context.Context, name string) chan error {
				out := make(chan error, 1)
				r := request(t, name, 0, 1)
				go func() {
					_, err := s.Import(ctx, r)
					out <- err
				}()
				return out
			}
			ctx1, cancel1 := context.WithCancel(t.Context())
			ctx2, cancel2 := context.WithCancel(t.Context())
			defer cancel1()
			defer cancel2()
			first := start(ctx1, "first")
			<-entered
			second := start(ctx2, "second")
			third := start(t.Context(), "third")
			if p.cancelAll {
				cancel1()
				cancel2()
			} else if p.cancelFirst {
				cancel1()
				if err := <-first; !errors.Is(err, context.Canceled) {
					t.Errorf("first: %v", err)
				}
			} else {
				cancel2()
				if err := <-second; !errors.Is(err, context.Canceled) {
					t.Errorf("second: %v", err)
				}
			}
			close(goOn)
			if err := <-third; err != nil {
				t.Errorf("third: %v", err)
			}
			if p.firstFails {
				if err := <-first; err == nil || !strings.Contains(err.Error(), "bad source") {
					t.Errorf("first: %v", err)
				}
			} else if !p.cancelFirst && !p.cancelAll {
				if err := <-first; err != nil {
					t.Errorf("first: %v", err)
				}
			}
			if p.cancelAll {
				<-first
			}
			if p.cancelAll || p.cancelFirst {
				<-second
			}
			whole(t, s)
		})
	}
}

type verdict struct {
	io.Reader
	err error
}

func (v verdict) Read(b []byte) (int, error) {
	n, err := v.Reader.Read(b)
	if err == io.EOF {
		err = v.err
	}
	return n, err
}

func (verdict) Close() error { return nil }

// TestUnverified: a stream that fails at its very end is not committed, whatever the converter thought,
// nor is anything when the disk is full.
func TestUnverified(t *testing.T) {
	b := tarball(t, 1)
	bad := errors.New("the digest is wrong")
	lazy := func(_ context.Context, o layerdir.Options) (layerdir.Result, error) {
		buf := make([]byte, 512)
		if _, err := io.ReadFull(o.Tar, buf); err != nil {
			return layerdir.Result{}, err
		}
		path := filepath.Join(o.Dir, o.Format.FileName())
		return layerdir.Result{Path: path, Bytes: 512}, errors.Join(os.MkdirAll(o.Dir, 0o755), os.WriteFile(path, buf, 0o644))
	}
	full := func(context.Context, layerdir.Options) (layerdir.Result, error) {
		return layerdir.Result{}, &os.PathError{Op: "write", Path: "layer.erofs", Err: syscall.ENOSPC}
	}
	for _, tt := range []struct {
		name    string
		convert store.Converter
		end     error
		want    error
		text    string
	}{
		{"converter that reads all", nil, bad, bad, "layer 1 of 1"},
		{"converter that stops early", lazy, bad, bad, "layer 1 of 1"},
		{"disk full", full, io.EOF, syscall.ENOSPC, "strata store gc"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, t.TempDir(), store.Options{Convert: tt.convert})
			l := layer(b)
			l.Open = func(context.Context, func(int64)) (io.ReadCloser, error) {
				return verdict{bytes.NewReader(b), tt.end}, nil
			}
			_, err := s.Import(t.Context(), store.Request{Name: "x", Layers: []store.Layer{l}})
			if !errors.Is(err, tt.want) || !strings.Contains(fmt.Sprint(err), tt.text) {
				t.Errorf("error %v, want %v with %q", err, tt.want, tt.text)
			}
			if layers, chains := objects(t, s); layers+chains != 0 {
				t.Errorf("%d layers and %d chains were committed", layers, chains)
			}
			whole(t, s)
			if _, err := s.Find("x"); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("the image is in the store: %v", err)
			}
		})
	}
}

func TestBadRequests(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{})
	for name, r := range map[string]store.Request{
		"no name":         {},
		"diff id":         {Name: "x", Layers: []store.Layer{{DiffID: "sha256:../../x"}}},
		"format":          {Name: "x", Formats: []store.Format{{File: "../x"}}},
		"diff id of md5":  {Name: "x", Layers: []store.Layer{{DiffID: "md5:d41d8cd98f00b204e9800998ecf8427e"}}},
		"upper case hash": {Name: "x", Layers: []store.Layer{{DiffID: "sha256:" + strings.Repeat("A", 64)}}},
	} {
		if _, err := s.Import(t.Context(), r); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%s: %v, want %v", name, err, store.ErrInvalid)
		}
	}
	whole(t, s)
}

func TestFind(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{})
	odd := "odd/../name with spaces\n:" + strings.Repeat("x", 300)
	a, b := mustImport(t, s, request(t, odd, 0, 1)), mustImport(t, s, request(t, "b", 0, 1))
	for _, ref := range []string{odd, a.Digest, a.Digest[:14], strings.TrimPrefix(a.Digest, "sha256:")[:8]} {
		if img, err := s.Find(ref); err != nil || img.Name != odd {
			t.Errorf("Find(%q) = %q, %v", ref, img.Name, err)
		}
	}
	for _, ref := range []string{"c", "", "sha256:", a.Digest[:8], "../images"} {
		if _, err := s.Find(ref); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Find(%q): %v", ref, err)
		}
	}
	if err := s.Remove(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "b"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	if _, err := s.Folders(b, vhd); !errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), "erofs") {
		t.Errorf("folders in a format that is not there: %v", err)
	}
	list, err := s.Images()
	if err != nil || len(list) != 1 {
		t.Errorf("images %v, %v", list, err)
	}
	// A record that is damaged is named, and keeps the garbage collection from guessing.
	if err := os.WriteFile(filepath.Join(s.Dir(), "images", "x.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if list, err := s.Images(); !errors.Is(err, store.ErrDamaged) || len(list) != 1 {
		t.Errorf("images %v, %v", list, err)
	}
	if _, err := s.GC(t.Context(), false); !errors.Is(err, store.ErrDamaged) {
		t.Errorf("collected with a damaged record: %v", err)
	}
}

// TestTempDir: a temporary folder stays while its owner has it, whoever else opens the store.
func TestTempDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir, store.Options{})
	tmp, remove, err := s.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tmp, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, dir, store.Options{})
	if _, err := os.Stat(filepath.Join(tmp, "file")); err != nil {
		t.Errorf("swept in use: %v", err)
	}
	if err := remove(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Dir(tmp)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestLayersAreShared: each layer's file is shared once, when it is made.
func TestLayersAreShared(t *testing.T) {
	var n atomic.Int32
	s := open(t, t.TempDir(), store.Options{Share: func(_ context.Context, file string) error {
		_, err := os.Stat(file)
		n.Add(1)
		return err
	}})
	for range 2 {
		mustImport(t, s, request(t, "a", 0, 3))
	}
	if n.Load() != 3 {
		t.Errorf("%d files were shared, want 3", n.Load())
	}
}
