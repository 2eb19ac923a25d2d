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
	"strings"

	"github.com/stratavm/strata/internal/lockfile"
)

// Removed lists what GC removed or, with dryRun, would remove.
type Removed struct {
	Objects []string `json:"objects"` // relative to the store
	Bytes   int64    `json:"bytes"`   // disk space freed
	// Held are objects that no image needs but that are in use, with their users.
	Held map[string]string `json:"held,omitempty"`
}

// GC removes layers that no image needs, that no lease refers to, and that no virtual machine has mounted. It holds
// the lock of the store only while it finds and renames them, not while it deletes them.
func (s *Store) GC(ctx context.Context, dryRun bool) (Removed, error) {
	r, err := s.gc(ctx, dryRun)
	if err != nil {
		return r, fmt.Errorf("collect garbage in %s: %w", s.dir, err)
	}
	return r, nil
}

func (s *Store) gc(ctx context.Context, dryRun bool) (out Removed, err error) {
	out.Objects = []string{}
	if err := s.sweep(ctx); err != nil {
		return out, err
	}
	t, err := s.newTemp()
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, t.remove()) }()
	err = s.with(ctx, false, func() error {
		dead, held, err := s.dead(ctx)
		if err != nil {
			return err
		}
		out.Held = held
		for i, obj := range dead {
			n, err := diskUsage(s.path(string(obj)))
			if err != nil {
				return err
			}
			if !dryRun {
				s.step("collect")
				if err := os.Rename(s.path(string(obj)), filepath.Join(t.dir, fmt.Sprint(i))); err != nil {
					return err
				}
				// Remove the digest's folder with its last format.
				_ = os.Remove(filepath.Dir(s.path(string(obj))))
			}
			out.Objects = append(out.Objects, string(obj))
			out.Bytes += n
		}
		if dryRun {
			return nil
		}
		return s.dropLocks(ctx)
	})
	s.step("collected")
	return out, err
}

// dead returns the objects that can be removed. Chains come before layers: a chain must never have dangling links.
func (s *Store) dead(ctx context.Context) (dead []object, heldBy map[string]string, err error) {
	images, err := s.Images()
	if err != nil {
		return nil, nil, fmt.Errorf("an image cannot be read, so no layer is known to be unused: %w", err)
	}
	needed := map[object]bool{}
	for _, img := range images {
		for _, o := range img.objects() {
			needed[o] = true
		}
	}
	held, err := s.leased()
	if err != nil {
		return nil, nil, err
	}
	if s.o.InUse != nil {
		paths, err := s.o.InUse(ctx)
		if err != nil {
			return nil, nil, fmt.Errorf("ask which layers virtual machines use: %w", err)
		}
		for _, p := range paths {
			for _, o := range s.objectsOf(p) {
				held[o] = "a virtual machine"
			}
		}
	}
	heldBy = map[string]string{}
	for _, kind := range []string{chainsDir, layersDir} {
		all, err := s.list(kind)
		if err != nil {
			return nil, nil, err
		}
		for _, o := range all {
			switch owner, ok := held[o]; {
			case needed[o]:
			case ok:
				heldBy[string(o)] = owner
			default:
				dead = append(dead, o)
			}
		}
	}
	return dead, heldBy, nil
}

// objectsOf returns the objects that contain a host path, as given and with links resolved. A chain in use includes
// its layer; its parents are in use on their own.
func (s *Store) objectsOf(path string) []object {
	var out []object
	add := func(p string) {
		rel, err := filepath.Rel(s.dir, p)
		if err != nil {
			return
		}
		parts := strings.Split(filepath.ToSlash(rel), "/")
		if len(parts) >= 4 && (parts[0] == layersDir || parts[0] == chainsDir) {
			out = append(out, object(filepath.Join(parts[:4]...)))
		}
	}
	add(path)
	if real, err := filepath.EvalSymlinks(path); err == nil {
		add(real)
	}
	for _, o := range slices.Clone(out) {
		if !strings.HasPrefix(string(o), chainsDir) {
			continue
		}
		files, err := os.ReadDir(s.path(string(o)))
		if err != nil {
			continue
		}
		for _, e := range files {
			file := s.path(string(o), e.Name())
			if real, err := filepath.EvalSymlinks(file); err == nil {
				add(real)
			}
			out = append(out, s.hardLinked(file)...)
		}
	}
	return out
}

// hardLinked returns the layers that also have the file at path: on Windows, chains have hard links.
func (s *Store) hardLinked(path string) (out []object) {
	if runtime.GOOS != "windows" {
		return nil
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil
	}
	layers, _ := s.list(layersDir) // dead lists them again, and reports the error
	for _, o := range layers {
		if there, err := os.Lstat(s.path(string(o), filepath.Base(path))); err == nil && os.SameFile(info, there) {
			out = append(out, o)
		}
	}
	return out
}

// list returns all objects of a kind.
func (s *Store) list(kind string) ([]object, error) {
	var out []object
	top := filepath.Join(kind, "sha256")
	ids, err := os.ReadDir(s.path(top))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		formats, err := os.ReadDir(s.path(top, id.Name()))
		if err != nil {
			return nil, err
		}
		for _, f := range formats {
			out = append(out, object(filepath.Join(top, id.Name(), f.Name())))
		}
	}
	return out, nil
}

// dropLocks removes the lock files that nobody holds.
func (s *Store) dropLocks(ctx context.Context) error {
	return lockfile.Sweep(ctx, s.path(locksDir), fs.DirEntry.Name, func(_ string, lock *os.File) error {
		if lock == nil {
			return nil // removed in the meantime
		}
		return lockfile.Drop(lock)
	})
}

// diskUsage returns the disk space of an object's files. Symbolic links are not counted.
func diskUsage(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err == nil && fi.Mode().IsRegular() {
			n += allocated(fi)
		}
		return err
	})
	return n, err
}
