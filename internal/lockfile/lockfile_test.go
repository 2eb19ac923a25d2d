package lockfile

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestTry(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	if f, err := Try(path, false, 0); f != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v, %v", f, err)
	}
	take := func(shared bool) *os.File {
		t.Helper()
		f, err := Try(path, shared, os.O_CREATE)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	first, second := take(true), take(true)
	if first == nil || second == nil {
		t.Fatal("two cannot share the lock")
	}
	if f := take(false); f != nil {
		t.Error("an exclusive lock beside shared ones")
	}
	held := func(want bool) {
		t.Helper()
		if got, err := Held(path); got != want || err != nil {
			t.Errorf("held alone: %v, %v", got, err)
		}
	}
	held(false)
	if err := errors.Join(first.Close(), second.Close()); err != nil {
		t.Fatal(err)
	}
	only := take(false)
	if only == nil {
		t.Fatal("the lock was not let go")
	}
	if f := take(true); f != nil {
		t.Error("a shared lock beside an exclusive one")
	}
	held(true)
	if err := Drop(only); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("dropped, and still there: %v", err)
	}
	held(false)
}

func TestWait(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	held, err := Wait(t.Context(), path, false)
	if err != nil {
		t.Fatal(err)
	}
	why := errors.New("no patience")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if f, err := Wait(ctx, path, false); f != nil || !errors.Is(err, why) {
		t.Errorf("the lock is held: %v, %v", f, err)
	}
	got := make(chan *os.File)
	go func() {
		f, err := Wait(t.Context(), path, false)
		if err != nil {
			t.Error(err)
		}
		got <- f
	}()
	// Whether it waits for the file or comes when it is gone: it must not get the one that nobody finds.
	if err := Drop(held); err != nil {
		t.Fatal(err)
	}
	f := <-got
	if f == nil {
		return
	}
	if same, err := inPlace(f); err != nil || !same {
		t.Errorf("a lock on a file that is not there: %v", err)
	}
	if err := Drop(f); err != nil {
		t.Error(err)
	}
}

// TestSweep: what is free is swept, what is held or no lock is left alone, and an error does not keep the rest.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"free/lock", "held/lock", "odd/lock/file", "other/lock", "empty/"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if filepath.Base(name) == "empty" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	held, err := Try(filepath.Join(dir, "held", "lock"), false, 0)
	if err != nil || held == nil {
		t.Fatal(held, err)
	}
	defer held.Close()
	broken := errors.New("broken")
	locks := func(e fs.DirEntry) string {
		if e.Name() == "other" {
			return ""
		}
		return filepath.Join(e.Name(), "lock")
	}
	got := map[string]bool{}
	err = Sweep(t.Context(), dir, locks, func(name string, lock *os.File) error {
		got[name] = lock != nil
		if lock == nil {
			return broken
		}
		return Drop(lock)
	})
	if !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	if want := map[string]bool{"free": true, "empty": false}; !maps.Equal(got, want) {
		t.Errorf("swept %v, want %v", got, want)
	}
	if _, err := os.Stat(filepath.Join(dir, "free", "lock")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the free lock: %v", err)
	}
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	err = Sweep(ctx, dir, locks, func(name string, _ *os.File) error { return errors.New(name) })
	if !errors.Is(err, why) || err.Error() != why.Error() {
		t.Errorf("after the end: %v", err)
	}
	if err := Sweep(t.Context(), filepath.Join(dir, "nosuch"), locks, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
}

// TestDropFolder: what stands beside the lock goes, and so do the lock and the folder.
func TestDropFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "x")
	if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "lock")
	lock, err := Wait(t.Context(), path, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a", "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := DropFolder(lock); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder: %v", err)
	}
}

// TestNobodyStarves: of two that wait for seconds, who has waited longer never asks less often.
func TestNobodyStarves(t *testing.T) {
	last := time.Hour
	for waited := 100 * time.Millisecond; waited < time.Minute; waited *= 2 {
		p := pause(waited)
		if p > last || p < time.Millisecond {
			t.Errorf("after %v it asks again in %v, before in %v", waited, p, last)
		}
		last = p
	}
	if last != time.Millisecond {
		t.Errorf("after a minute it asks again in %v", last)
	}
}
