package uvm

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stratavm/strata/vmm"
)

var errRuns = errors.New("asked")

func TestRemove(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vm")
	no := func() (bool, error) { return false, nil }
	if err := Remove(t.Context(), dir, no); err != nil {
		t.Errorf("a directory that is not there: %v", err)
	}
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "rest"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, running := range map[string]func() (bool, error){
		"it runs":        func() (bool, error) { return true, nil },
		"nobody can say": func() (bool, error) { return false, errRuns },
	} {
		if err := Remove(t.Context(), dir, running); err == nil {
			t.Errorf("%s: removed", name)
		}
		if _, err := os.Stat(filepath.Join(dir, "rest")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Remove(t.Context(), dir, no); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

// TestRemoveWaits: whoever waits for the lock of a directory that is removed gets no lock on a file
// that nobody else can find.
func TestRemoveWaits(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vm")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	waited := make(chan error, 1)
	err := Remove(t.Context(), dir, func() (bool, error) {
		go func() {
			_, err := Open(t.Context(), dir, func(context.Context) (vmm.Machine, error) { return nil, vmm.ErrGone }, Options{})
			waited <- err
		}()
		time.Sleep(10 * time.Millisecond) // gives it time to wait; the result is the same when it comes later
		return false, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// It finds no directory, or has made a new lock in the empty one before that went too.
	if err := <-waited; !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, vmm.ErrGone) {
		t.Errorf("opening a directory that was removed meanwhile: %v", err)
	}
}
