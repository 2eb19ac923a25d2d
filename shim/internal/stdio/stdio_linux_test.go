package stdio

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/test/leaktest"
)

func fifo(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func open(t *testing.T, n Names) *Streams {
	t.Helper()
	s, err := Open(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// TestOutputThroughSlowReader brings over what is more than a FIFO holds, and the reader sees the end.
func TestOutputThroughSlowReader(t *testing.T) {
	leaktest.Check(t)
	out, errs := fifo(t), filepath.Join(t.TempDir(), "log")
	s := open(t, Names{Stdout: out, Stderr: "file://" + errs})
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := bytes.Repeat([]byte("0123456789abcdef"), 8<<16) // 8 MiB
	read := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(f)
		read <- b
	}()
	if n, err := s.Stdout().Write(want); n != len(want) || err != nil {
		t.Errorf("write: %d, %v", n, err)
	}
	if _, err := io.WriteString(s.Stderr(), "oops"); err != nil {
		t.Error(err)
	}
	s.Close()
	if got := <-read; !bytes.Equal(got, want) {
		t.Errorf("%d bytes came over, want %d", len(got), len(want))
	}
	if b, err := os.ReadFile(errs); string(b) != "oops" {
		t.Errorf("the file has %q, %v", b, err)
	}
}

// full waits until a FIFO holds as much as it can.
func full(t *testing.T, name string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for {
		size, err := unix.FcntlInt(f.Fd(), unix.F_GETPIPE_SZ, 0)
		if err != nil {
			t.Fatal(err)
		}
		n, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCINQ)
		if err != nil {
			t.Fatal(err)
		}
		if n == size {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// TestOutputNobodyReads blocks until it is given up.
func TestOutputNobodyReads(t *testing.T) {
	leaktest.Check(t)
	name := fifo(t)
	s := open(t, Names{Stdout: name})
	done := make(chan struct{})
	go func() {
		defer close(done)
		if n, err := s.Stdout().Write(make([]byte, 1<<20)); n != 1<<20 || err != nil {
			t.Errorf("write: %d, %v; want it dropped without an error", n, err)
		}
	}()
	full(t, name)
	select {
	case <-done:
		t.Error("a full FIFO took more")
	default:
	}
	s.GiveUp(time.Hour)
	s.GiveUp(time.Millisecond)
	s.GiveUp(time.Hour)
	<-done
}

// TestInput is read across writers that come and go, and ends by EndInput behind what was written.
func TestInput(t *testing.T) {
	leaktest.Check(t)
	name := fifo(t)
	s := open(t, Names{Stdin: name})
	write := func(text string) {
		t.Helper()
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString(text)
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Begin(); err != nil { // nobody has come
		t.Fatal(err)
	}
	write("one ")
	got := make([]byte, 4)
	if _, err := io.ReadFull(s.Stdin(), got); err != nil || string(got) != "one " {
		t.Fatalf("%q, %v", got, err)
	}
	rest := make(chan string)
	go func() {
		b, err := io.ReadAll(s.Stdin())
		if err != nil {
			t.Error(err)
		}
		rest <- string(b)
	}()
	write("two ")
	write("three")
	s.EndInput()
	if got := <-rest; got != "two three" {
		t.Errorf("%q was read, want what was written before the end", got)
	}
	s.EndInput()
}

// TestInputWritersGone ends behind what was written by those who left before the process was started.
func TestInputWritersGone(t *testing.T) {
	leaktest.Check(t)
	name := fifo(t)
	s := open(t, Names{Stdin: name})
	stays, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer stays.Close()
	if _, err := stays.WriteString("last words"); err != nil {
		t.Fatal(err)
	}
	stays.Close()
	for range 2 {
		if err := s.Begin(); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := io.ReadAll(s.Stdin()); string(b) != "last words" || err != nil {
		t.Errorf("%q was read, %v", b, err)
	}
}

// TestInputClosed wakes who reads.
func TestInputClosed(t *testing.T) {
	leaktest.Check(t)
	s := open(t, Names{Stdin: fifo(t)})
	done := make(chan error)
	go func() {
		_, err := s.Stdin().Read(make([]byte, 1))
		done <- err
	}()
	s.Close()
	if err := <-done; err != io.EOF {
		t.Errorf("read: %v, want EOF", err)
	}
}

func TestNotConnected(t *testing.T) {
	s := open(t, Names{})
	if s.Stdin() != nil || s.Stdout() != nil || s.Stderr() != nil {
		t.Error("streams without names are connected")
	}
	s.EndInput()
	s.GiveUp(time.Hour)
	if s := open(t, Names{Stdout: fifo(t), Stderr: fifo(t), Terminal: true}); s.Stderr() != nil {
		t.Error("a terminal has a stream of errors")
	}
}

func TestRefused(t *testing.T) {
	leaktest.Check(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		n    Names
		want error
	}{
		{Names{Stdout: "syslog:///bin/logger?a=b"}, errdefs.ErrNotImplemented},
		{Names{Stdout: "binary://bin/logger"}, errdefs.ErrInvalidArgument},
		{Names{Stdout: "binary://" + file + "-none"}, os.ErrNotExist},
		{Names{Stdout: "binary://" + file}, os.ErrPermission},
		{Names{Stdout: "file://" + fifo(t)}, errdefs.ErrInvalidArgument},
		{Names{Stdout: "file://host/log"}, errdefs.ErrInvalidArgument},
		{Names{Stdin: file}, errdefs.ErrInvalidArgument},
		{Names{Stderr: file}, errdefs.ErrInvalidArgument},
		{Names{Stdin: "relative"}, errdefs.ErrInvalidArgument},
		{Names{Stdout: file + "-none"}, os.ErrNotExist},
	} {
		if _, err := Open(tt.n); !errors.Is(err, tt.want) {
			t.Errorf("%+v: %v, want an error matching %q", tt.n, err, tt.want)
		}
	}
}
