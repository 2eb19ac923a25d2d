//go:build !windows

package image_test

import (
	"os"
	"syscall"
	"testing"
)

// specialKinds adds what only such systems have.
func specialKinds(kinds map[string]func(*testing.T, string)) {
	kinds["a FIFO"] = func(t *testing.T, path string) {
		if err := syscall.Mkfifo(path, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kinds["a device"] = func(t *testing.T, path string) {
		if os.Getuid() != 0 {
			t.Skip("not root")
		}
		if err := syscall.Mknod(path, syscall.S_IFCHR|0o644, 1<<8|5); err != nil { // zeros for ever
			t.Skip(err)
		}
	}
}
