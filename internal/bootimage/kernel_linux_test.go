package bootimage

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUnreadableKernel: a kernel that only root may read is named, with what makes it readable.
func TestUnreadableKernel(t *testing.T) {
	o := host(t, "none")
	paths, err := filepath.Glob(filepath.Join(o.KernelDir, "vmlinuz-*"))
	if err != nil || len(paths) != 1 {
		t.Fatalf("kernels: %q, %v", paths, err)
	}
	// The folder of all temporary folders of a test is private.
	private := filepath.Dir(filepath.Dir(o.KernelDir))
	if err := errors.Join(os.Chmod(private, 0o755), os.Chmod(paths[0], 0o600)); err != nil {
		t.Fatal(err)
	}
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its user
		var err error
		if os.Geteuid() == 0 {
			_, err = unix.SetfsuidRetUid(65534)
		} else {
			err = os.Chmod(paths[0], 0)
		}
		if err == nil {
			_, _, err = Kernel(o)
		}
		result <- err
	}()
	err = <-result
	none, ok := errors.AsType[*NoKernelError](err)
	if !ok || !errors.Is(err, ErrNoKernel) || !errors.Is(err, fs.ErrPermission) {
		t.Fatalf("got %v", err)
	}
	if want := "sudo chmod 0644 '" + paths[0] + "'"; none.Remedy != want {
		t.Errorf("remedy: %s, want %s", none.Remedy, want)
	}
}
