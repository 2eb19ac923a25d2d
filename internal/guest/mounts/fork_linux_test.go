package mounts

import (
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

// TestUnmountWhileProcessesAreForked: a process that is being forked has copies of all descriptors until it executes
// its program. One of them must not be that of a mount which is unmounted next.
func TestUnmountWhileProcessesAreForked(t *testing.T) {
	treetest.NeedRoot(t, "to mount")
	const rounds, forkers = 400, 3
	outer := filepath.Join(t.TempDir(), "outer")
	inner := filepath.Join(outer, "inner")
	stop := make(chan struct{})
	var forking sync.WaitGroup
	for range forkers {
		forking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{})
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = syscall.Wait4(pid, nil, 0, nil)
			}
		})
	}
	for range rounds {
		for _, dir := range []string{outer, inner} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
		}
		for _, dir := range []string{inner, outer} {
			err := atParent(dir, func(at string) error { return unix.Unmount(at, unix.UMOUNT_NOFOLLOW) })
			if err != nil {
				t.Errorf("unmount %s: %v", dir, err)
				_ = unix.Unmount(dir, unix.MNT_DETACH)
			}
		}
	}
	close(stop)
	forking.Wait()
}
