package hostmount_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/hostmount"
)

// withoutRights runs f on a thread that has no capabilities, and never will have any again.
func withoutRights(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and not unlocked: the thread ends here
		none := [2]unix.CapUserData{}
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

// TestUnmountWithoutRights: what is not mounted is a success for everybody, so that whoever failed to
// mount can put his ledger in order; what is mounted stays.
func TestUnmountWithoutRights(t *testing.T) {
	treetest.NeedRoot(t, "to mount")
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(target, 0o755), os.Symlink(dir, link))
	withoutRights(t, func() {
		for _, path := range []string{target, filepath.Join(link, "target"), filepath.Join(dir, "none"),
			filepath.Join(dir, "none", "none")} {
			if err := hostmount.Unmount(t.Context(), path); err != nil {
				t.Errorf("nothing is mounted: %v", err)
			}
		}
	})
	must(hostmount.MountDirectory(t.Context(), t.TempDir(), target, true))
	withoutRights(t, func() {
		for _, path := range []string{target, filepath.Join(link, "target")} {
			if err := hostmount.Unmount(t.Context(), path); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("unmounting %s, where something is mounted: %v", path, err)
			}
		}
	})
	must(hostmount.Unmount(t.Context(), target))
}
