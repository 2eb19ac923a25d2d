package qemu

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTemplateLockFails: a lock that cannot be had because of an error is not taken for that of another process.
func TestTemplateLockFails(t *testing.T) {
	c := Config{CacheDir: t.TempDir(), Program: shell, Kernel: "kernel", Initrd: "initrd", ImageID: "image",
		Accel: AccelTCG}
	if err := os.MkdirAll(filepath.Join(c.CacheDir, templatesDir, makingLock), 0o700); err != nil {
		t.Fatal(err)
	}
	_, making := MakeTemplate(t.Context(), c)
	_, removing := RemoveTemplates(t.Context(), c.CacheDir, time.Now(), false)
	for _, err := range []error{making, removing} {
		if err == nil || !strings.Contains(err.Error(), makingLock) || errors.Is(err, ErrTemplateBusy) {
			t.Errorf("a lock that is a directory: %v", err)
		}
	}
}

// TestStartIdle: the program has the lowest priority from the beginning, and this process has its own.
func TestStartIdle(t *testing.T) {
	t.Setenv("PATH", t.TempDir()) // it needs no other program
	priority := func(pid int) int {
		t.Helper()
		n, err := unix.Getpriority(unix.PRIO_PROCESS, pid)
		if err != nil {
			t.Fatal(err)
		}
		return 20 - n // the system call is so
	}
	before := priority(0)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	child, err := startIdle("", shell, []string{shell, "-c", "read line"}, &os.ProcAttr{Files: []*os.File{r}})
	if err != nil {
		t.Fatal(err)
	}
	if n := priority(child.Pid); n != lowest {
		t.Errorf("the program's priority is %d", n)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if _, err := child.Wait(); err != nil {
		t.Error(err)
	}
	if n := priority(0); n != before {
		t.Errorf("the own priority was %d and is %d", before, n)
	}
}
