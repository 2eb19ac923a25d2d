package stdio

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata/test/leaktest"
)

// script makes a logger that runs a script in a folder of its own.
func script(t *testing.T, text string) (dir, path string) {
	t.Helper()
	dir = t.TempDir()
	path = filepath.Join(dir, "logger")
	if err := os.WriteFile(path, []byte("#!/bin/sh\ncd "+dir+"\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir, path
}

// TestLogger: one program reads both outputs, knows whose they are, and has written all when the streams are closed.
func TestLogger(t *testing.T) {
	leaktest.Check(t)
	dir, path := script(t, `echo "$CONTAINER_NAMESPACE $CONTAINER_ID $*" >args; echo >&5; exec 5>&-
/bin/cat <&3 >out; /bin/cat <&4 >err
`)
	for _, scheme := range []string{"binary", "binary-v2"} {
		uri := scheme + "://" + path + "?b=two%20words&a=1"
		s, err := Open(Names{Stdout: uri, Stderr: uri, Namespace: "ns", ID: "c"})
		if err != nil {
			t.Fatal(err)
		}
		burst := strings.Repeat("x", 1<<20)
		for w, text := range map[io.Writer]string{s.Stdout(): "out" + burst, s.Stderr(): "err"} {
			if _, err := io.WriteString(w, text); err != nil {
				t.Error(err)
			}
		}
		s.Close()
		s.Close()
		for name, want := range map[string]string{"args": "ns c b two words a 1\n", "out": "out" + burst, "err": "err"} {
			if b, err := os.ReadFile(filepath.Join(dir, name)); string(b) != want || err != nil {
				t.Errorf("%s: %s has %d bytes, %.100q, %v; want %.100q", scheme, name, len(b), b, err, want)
			}
		}
	}
}

// TestLoggerTerminal: the other output ends at once.
func TestLoggerTerminal(t *testing.T) {
	leaktest.Check(t)
	dir, path := script(t, "exec 5>&-; /bin/cat <&4 >err; : >ended; /bin/cat <&3 >out\n")
	s, err := Open(Names{Stdout: "binary://" + path, Terminal: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(s.Stdout(), "screen"); err != nil {
		t.Error(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(dir, "ended")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the other output does not end")
		}
	}
	s.Close()
	if b, err := os.ReadFile(filepath.Join(dir, "out")); string(b) != "screen" || err != nil {
		t.Errorf("the logger has written %q, %v", b, err)
	}
}

// TestLoggerStubborn: one that ends too early is an error by binary-v2, and one that does not end is ended.
func TestLoggerStubborn(t *testing.T) {
	leaktest.Check(t)
	_, early := script(t, "exit 0\n")
	if _, err := Open(Names{Stdout: "binary-v2://" + early}); err == nil || !strings.Contains(err.Error(), "ready") {
		t.Errorf("a logger that is never ready: %v", err)
	}
	_, stays := script(t, "trap '' TERM; exec 5>&-; while :; do /bin/sleep 0.1; done\n")
	s, err := Open(Names{Stdout: "binary://" + stays})
	if err != nil {
		t.Fatal(err)
	}
	l := s.loggers["binary://"+stays]
	s.Close()
	select {
	case <-l.exited:
	default:
		t.Error("the logger runs on")
	}
}
