package uvm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stratavm/strata/internal/lockfile"
)

const lockName = "lock"

var errRuns = errors.New("the VM is running")

// lockDir takes the lock of a state directory, waiting until ctx ends. The lock file contains the id of the process
// that holds it.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := lockfile.Wait(ctx, path, false)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, cause) {
			holder, _ := lockfile.ReadFile(path)
			err = fmt.Errorf("%w (process %s): %w", ErrLocked, cmp.Or(strings.TrimSpace(string(holder)), "unknown"), cause)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	// On a full disk the process id is missing: the lock works, and the directory can still be removed.
	_ = errors.Join(f.Truncate(0), writeAt(f, fmt.Sprintf("%d\n", os.Getpid())))
	return f, nil
}

// Remove deletes the state directory of a VM that no longer runs, with everything in it. It takes the lock first and
// then calls running; if that returns true, Remove fails and deletes nothing. A directory that does not exist is no
// error. If this process has a handle to the VM and its machine has ended, the handle gives up the lock and treats
// everything in the VM as gone; if its machine does not end within a few seconds, the error matches ErrLocked.
func Remove(ctx context.Context, dir string, running func() (bool, error)) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if vm := openHere(dir); vm != nil {
		if err := vm.leave(ctx, running); err != nil {
			return fmt.Errorf("remove %s: %w", dir, err)
		}
	}
	lock, err := lockDir(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // another process removed it
	}
	if err != nil {
		return err
	}
	if yes, err := running(); err != nil || yes {
		return errors.Join(fmt.Errorf("remove %s: %w", dir, cmp.Or(err, errRuns)), lock.Close())
	}
	if err := lockfile.DropFolder(lock); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

// endTime bounds the delay between the end of a machine's process and Machine.Done.
const endTime = 5 * time.Second

// leave gives up the directory of a VM that has ended: it closes the journal and releases the lock.
func (vm *UtilityVM) leave(ctx context.Context, running func() (bool, error)) error {
	if yes, err := running(); err != nil || yes {
		return cmp.Or(err, errRuns)
	}
	t := time.NewTimer(endTime)
	defer t.Stop()
	select {
	case <-vm.machine.Done():
	case <-ctx.Done():
		return fmt.Errorf("%w: this process: %w", ErrLocked, context.Cause(ctx))
	case <-t.C:
		return fmt.Errorf("%w: this process: close the handle first", ErrLocked)
	}
	vm.l.mu.Lock()
	vm.l.gone = true
	err := vm.l.journal.close()
	vm.l.mu.Unlock()
	return errors.Join(err, vm.unlock())
}

// handles are the VMs of this process that hold the lock of a directory.
var handles struct {
	sync.Mutex
	vms []*UtilityVM
}

// openHere returns the VM of this process that holds the lock of dir, or nil.
func openHere(dir string) *UtilityVM {
	there, err := os.Stat(filepath.Join(dir, lockName))
	if err != nil {
		return nil
	}
	handles.Lock()
	defer handles.Unlock()
	for _, vm := range handles.vms {
		if held, err := vm.lock.Stat(); err == nil && os.SameFile(held, there) {
			return vm
		}
	}
	return nil
}

// unlock releases the lock of the directory. It is idempotent.
func (vm *UtilityVM) unlock() error {
	handles.Lock()
	defer handles.Unlock()
	f := vm.lock
	if f == nil {
		return nil
	}
	vm.lock = nil
	handles.vms = slices.DeleteFunc(handles.vms, func(other *UtilityVM) bool { return other == vm })
	return f.Close()
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}
