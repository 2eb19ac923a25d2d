package uvm

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

var errAsked = errors.New("asked")

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
		"nobody can say": func() (bool, error) { return false, errAsked },
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

// TestRemoveByTheHolder: the process that has a VM open removes the directory once the machine has ended, and waits
// neither for its own lock nor for a machine that lives.
func TestRemoveByTheHolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "vm")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		f := vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())
		vm := openFake(t, f, dir)
		other := filepath.Join(t.TempDir(), "link")
		if err := os.Symlink(dir, other); err != nil {
			other = dir // a Windows user may not
		} else if _, err := os.Stat(other); err != nil {
			other = dir // and Wine makes none
		}
		c := mustClaim(t, vm, "web")
		mustAttach(t, vm, c, disk("/layers/1"))
		running := func() (bool, error) { return f.Err() == nil, nil }
		if err := Remove(t.Context(), dir, running); !errors.Is(err, errRuns) {
			t.Errorf("a machine that runs: %v", err)
		}
		if err := Remove(t.Context(), dir, func() (bool, error) { return false, nil }); !errors.Is(err, ErrLocked) {
			t.Errorf("a machine that lives and is said not to: %v", err)
		}
		time.AfterFunc(time.Second, f.Kill) // the news of its end comes late
		if err := Remove(t.Context(), other, func() (bool, error) { return false, nil }); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, journalName)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the journal: %v", err)
		}
		// The next machine of the directory has nothing to do with the handle.
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		next := openFake(t, vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits()), dir)
		mustClaim(t, next, "next")
		if _, err := vm.Claim(t.Context(), "late", nil); !errors.Is(err, vmm.ErrGone) {
			t.Errorf("a claim in what is gone: %v", err)
		}
		if err := c.Release(t.Context(), nil); err != nil {
			t.Errorf("what was in it: %v", err)
		}
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
		if err := next.Close(); err != nil {
			t.Error(err)
		}
		if s, err := ReadStatus(dir); err != nil || len(s.Claims) != 1 || s.Claims[0].ID != "next" {
			t.Errorf("the ledger of the next machine: %+v, %v", s, err)
		}
	})
}
