package leaktest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenFileIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "open")
	var f *os.File
	got := leaks(t, nil, func() {
		var err error
		if f, err = os.Create(path); err != nil {
			t.Fatal(err)
		}
	})
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	want(t, got, "open file "+path)
}

func TestProcessIsNamed(t *testing.T) {
	dir := t.TempDir()
	var child *exec.Cmd
	got := leaks(t, []string{dir}, func() {
		child = exec.Command("sleep", "59")
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
			t.Fatal(err)
		}
		// The outer shell ends; the inner one belongs to nobody, but has the folder in its command line.
		err := exec.Command("sh", "-c", "sh -c 'read line < $0/fifo' "+dir+" &").Run()
		if err != nil {
			t.Fatal(err)
		}
	})
	want(t, got, "sleep 59", "read line < $0/fifo "+dir)
	// Opening the other end lets the inner shell go on and end.
	if err := os.WriteFile(filepath.Join(dir, "fifo"), []byte("end\n"), 0o600); err != nil {
		t.Error(err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = child.Wait() // it was killed
}

func TestMountIsNamed(t *testing.T) {
	dir := t.TempDir()
	var mountErr error
	got := leaks(t, []string{filepath.Dir(dir)}, func() { mountErr = unix.Mount("ledger", dir, "tmpfs", 0, "size=4k") })
	if mountErr != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(mountErr)
		}
		t.Skipf("mounting needs root: %v", mountErr)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	want(t, got, "mount "+dir+" (tmpfs)")
}

// TestHolderIsNamed: a program that belongs to nobody and names no folder, but has a file there open.
func TestHolderIsNamed(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	got := leaks(t, []string{dir}, func() {
		cmd := exec.Command("sh", "-c", "sh -c 'read line' <> fifo &")
		cmd.Dir = dir
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
	})
	want(t, got, "sh -c read line")
	if err := os.WriteFile(fifo, []byte("end\n"), 0o600); err != nil {
		t.Error(err)
	}
}
