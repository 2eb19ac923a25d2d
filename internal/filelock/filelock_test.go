package filelock

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

func try(t *testing.T, path string, shared bool) *os.File {
	t.Helper()
	f, err := Try(path, os.O_CREATE, 0o600, shared)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestSharedAndExclusive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	a, b := try(t, path, true), try(t, path, true)
	if a == nil || b == nil {
		t.Fatal("two cannot share it")
	}
	if try(t, path, false) != nil {
		t.Error("exclusive beside shared ones")
	}
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	c := try(t, path, false)
	if c == nil || try(t, path, true) != nil {
		t.Error("not exclusive")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestHolderIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	f := try(t, path, false)
	if _, err := f.WriteString("process 7\n"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	late := errors.New("late")
	cancel(late)
	if _, err := Lock(ctx, path, 0o600, false); !errors.Is(err, ErrHeld) || !errors.Is(err, late) || !strings.Contains(err.Error(), "process 7") {
		t.Errorf("error %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// A file that others have open is removed all the same, and whoever has it has no lock.
func TestRemoveWhileOthersHaveItOpen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.lock")
	f := try(t, path, false)
	waiter, err := open(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := Remove(f); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if ok, err := inPlace(waiter); ok || err != nil {
		t.Errorf("the removed file counts: %v", err)
	}
	fresh := try(t, path, false)
	if fresh == nil {
		t.Fatal("the new file cannot be locked")
	}
	if ok, err := inPlace(waiter); ok || err != nil {
		t.Errorf("the removed file counts for the new one: %v", err)
	}
	if err := errors.Join(waiter.Close(), Remove(fresh)); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// One at a time has the lock, also when each holder removes the file.
func TestOneAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var in sync.Mutex
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				f, err := Lock(t.Context(), path, 0o600, false)
				if err != nil {
					t.Error(err)
					return
				}
				if !in.TryLock() {
					t.Error("two have the lock")
				} else {
					runtime.Gosched()
					in.Unlock()
				}
				if err := Remove(f); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestTryWithoutAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	if _, err := Try(path, 0, 0, false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	if _, err := ReadFile(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	f, err := Try(path, os.O_CREATE|os.O_EXCL, 0o600, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Try(path, os.O_CREATE|os.O_EXCL, 0o600, false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("error %v", err)
	}
	if err := Remove(f); err != nil {
		t.Error(err)
	}
}
