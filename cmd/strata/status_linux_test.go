package main

import (
	"bytes"
	"io"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// screen is a terminal whose output is kept.
type screen struct {
	*os.File
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// TestWaiting: a status that goes away on a terminal, a line elsewhere, nothing where it does not take long.
func TestWaiting(t *testing.T) {
	tty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	defer tty.Close()
	for _, tt := range []struct {
		name           string
		terminal, json bool
		long           bool
		want           string
	}{
		{"terminal", true, false, true, "\r\x1b[Kwaiting for \"a\\nb\"\r\x1b[K"},
		{"terminal, JSON", true, true, true, "{\"notice\":\"waiting for \\\"a\\\\nb\\\"\"}\n"},
		{"no terminal", false, false, true, "strata: waiting for \"a\\nb\"\n"},
		{"short, terminal", true, false, false, ""},
		{"short, no terminal", false, false, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &screen{File: tty}
				e := &env{stderr: s, json: tt.json}
				if !tt.terminal {
					e.stderr = struct{ io.Writer }{s}
				}
				done := e.waiting(time.Second, "waiting for %q", "a\nb")
				if tt.long {
					time.Sleep(2 * time.Second)
				}
				done()
				done()
				time.Sleep(time.Minute)
				if got := s.String(); got != tt.want {
					t.Errorf("got %q, want %q", got, tt.want)
				}
			})
		})
	}
}
