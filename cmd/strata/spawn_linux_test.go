package main

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestInherited: the supervisor's connection to its command is not passed on. A process that has it, as one that makes
// a template, would have the command wait for it after the supervisor has failed.
func TestInherited(t *testing.T) {
	fd, err := unix.Open(os.DevNull, unix.O_RDONLY, 0) // it is passed on, as ExtraFiles are
	if err != nil {
		t.Fatal(err)
	}
	f := inherited(fd, "null")
	defer f.Close()
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("the flags are %#x (%v)", flags, err)
	}
}

// TestTemplateLog: what a process that still runs has said stays, and the file does not grow without bound.
func TestTemplateLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), templateLog)
	say := func(text string) *os.File {
		t.Helper()
		f, err := openTemplateLog(path)
		if err == nil {
			_, err = f.WriteString(text)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	holds := func(want string) {
		t.Helper()
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Errorf("it says %.40q and has %d bytes (%v), want %.40q", b, len(b), err, want)
		}
	}
	first := say("a")
	say("b")
	holds("ab")
	if _, err := first.WriteString(string(make([]byte, maxTemplateLog))); err != nil {
		t.Fatal(err)
	}
	say("c")
	holds("c")
	if _, err := first.WriteString("d"); err != nil {
		t.Fatal(err)
	}
	holds("cd")
}
