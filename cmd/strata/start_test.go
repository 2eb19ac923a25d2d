package main

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stratavm/strata"
)

func TestParseKeys(t *testing.T) {
	for in, want := range map[string]string{"ctrl-p,ctrl-q": "\x10\x11", "ctrl-a": "\x01", "a,B": "aB", "ctrl-@": "\x00",
		"ctrl-\\,x": "\x1cx", "CTRL-Z": "\x1a", "": "", "ctrl-": "", "ctrl-1": "", "ab": "", "a,,b": "", "ü": "", " ": ""} {
		got, err := parseKeys(in)
		if string(got) != want && err == nil || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
}

// TestKeyReader: keys that detach end the input, whatever pieces it comes in; what only begins so is passed on.
func TestKeyReader(t *testing.T) {
	for _, tt := range []struct {
		in, want string
		pressed  bool
	}{
		{"hello", "hello", false}, {"a\x10\x11b", "a", true}, {"a\x10b", "a\x10b", false}, {"\x10\x10\x11", "\x10", true},
		{"\x11\x10", "\x11", false}, {"", "", false},
	} {
		for name, from := range map[string]io.Reader{"at once": bytes.NewReader([]byte(tt.in)),
			"byte by byte": iotest.OneByteReader(bytes.NewReader([]byte(tt.in)))} {
			pressed := make(chan struct{})
			got, err := io.ReadAll(&keyReader{from: from, keys: []byte("\x10\x11"), pressed: pressed})
			down := false
			select {
			case <-pressed:
				down = true
			default:
			}
			if down != tt.pressed || err != nil || string(got) != tt.want {
				t.Errorf("%q %s: %q, %v, pressed %v", tt.in, name, got, err, down)
			}
		}
	}
	broken := errors.New("broken")
	if _, err := io.ReadAll(&keyReader{from: iotest.ErrReader(broken), keys: []byte("x")}); !errors.Is(err, broken) {
		t.Error(err)
	}
}

func TestParseTime(t *testing.T) {
	now := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	for in, want := range map[string]time.Time{"10m": now.Add(-10 * time.Minute), "1h30m": now.Add(-90 * time.Minute),
		"1700000000": time.Unix(1700000000, 0), "1700000000.5": time.Unix(1700000000, 500000000),
		"2026-01-02T15:04:05Z": time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC),
		"2026-01-02":           time.Date(2026, 1, 2, 0, 0, 0, 0, time.Local), "": {}, "yesterday": {}, "1.2.3": {},
		"1.-5": {}} {
		got, err := parseTime(in, now)
		if !got.Equal(want) || (err == nil) == want.IsZero() {
			t.Errorf("%q: %v, %v; want %v", in, got, err, want)
		}
	}
}

func TestStatusOf(t *testing.T) {
	now := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	at := func(d time.Duration) time.Time { return now.Add(-d) }
	for want, r := range map[string]strata.ContainerRecord{
		"Up less than a second":      {State: strata.ContainerRunning, Started: at(0)},
		"Up 1 second":                {State: strata.ContainerRunning, Started: at(time.Second)},
		"Up 90 minutes":              {State: strata.ContainerRunning, Started: at(90 * time.Minute)},
		"Up 47 hours":                {State: strata.ContainerRunning, Started: at(47 * time.Hour)},
		"Up 3 days":                  {State: strata.ContainerRunning, Started: at(72 * time.Hour)},
		"Exited (137) 2 minutes ago": {State: strata.ContainerExited, ExitCode: 137, Finished: at(2 * time.Minute)},
		"Created":                    {State: strata.ContainerCreated},
		"Up":                         {State: strata.ContainerRunning}, // a record without times
		"Exited (1)":                 {State: strata.ContainerExited, ExitCode: 1},
	} {
		if got := statusOf(r, now); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := ago(time.Time{}, now); got != "unknown" {
		t.Errorf("a time that is not known was %s", got)
	}
}
