package supervise

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// readAll returns the lines of a log.
func readAll(t *testing.T, dir string, o LogOptions) (lines []string) {
	t.Helper()
	if err := ReadLog(t.Context(), dir, o, func(l Line) error {
		lines = append(lines, l.Stream+":"+l.Log)
		return nil
	}); err != nil {
		t.Error(err)
	}
	return lines
}

func openTestLog(t *testing.T, dir string) *Log {
	t.Helper()
	l, err := OpenLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestLog: lines come back as they were written, whatever pieces they were written in.
func TestLog(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	for _, tt := range []struct {
		name   string
		pieces []string
		want   []string
	}{
		{"lines", []string{"a\nb\n"}, []string{"a\n", "b\n"}},
		{"pieces", []string{"a", "b", "c\nd", "\n"}, []string{"abc\n", "d\n"}},
		{"no end", []string{"a\nrest"}, []string{"a\n", "rest"}},
		{"nothing", []string{""}, nil},
		{"empty lines", []string{"\n\n"}, []string{"\n", "\n"}},
		{"odd", []string{"\x00\x1b[2J \"q\" \\\xff\n"}, []string{"\x00\x1b[2J \"q\" \\\ufffd\n"}},
		{"long", []string{long + "yz\n"}, []string{long, "yz\n"}},
		{"long in pieces", []string{long[1:], "x", "y\n"}, []string{long, "y\n"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			l := openTestLog(t, dir)
			s := l.Stream("stdout")
			for _, p := range tt.pieces {
				if n, err := s.Write([]byte(p)); n != len(p) || err != nil {
					t.Fatal(n, err)
				}
			}
			if err := errors.Join(s.Close(), l.Close()); err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, w := range tt.want {
				want = append(want, "stdout:"+w)
			}
			if d := cmp.Diff(want, readAll(t, dir, LogOptions{Tail: -1})); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestLogIsBounded: however much a program writes, two files of a size are kept, and the newest lines are in them.
func TestLogIsBounded(t *testing.T) {
	dir := t.TempDir()
	l := openTestLog(t, dir)
	l.max = 64 << 10
	s := l.Stream("stderr")
	last := ""
	for i := range 20000 {
		last = fmt.Sprintf("line %d\n", i)
		_, _ = s.Write([]byte(last))
	}
	if err := errors.Join(s.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Fatal(entries, err)
	}
	for _, e := range entries {
		if fi, err := e.Info(); err != nil || fi.Size() > l.max+maxRecord {
			t.Errorf("%s: %v %v", e.Name(), fi, err)
		}
	}
	lines := readAll(t, dir, LogOptions{Tail: -1})
	if len(lines) < 500 || lines[len(lines)-1] != "stderr:"+last {
		t.Errorf("%d lines", len(lines))
	}
	for i := 1; i < len(lines); i++ {
		var a, b int
		if _, err := fmt.Sscanf(lines[i-1]+lines[i], "stderr:line %d\nstderr:line %d", &a, &b); err != nil || b != a+1 {
			t.Fatalf("%q after %q: %v", lines[i], lines[i-1], err)
		}
	}
	if got := readAll(t, dir, LogOptions{Tail: 3}); !slices.Equal(got, lines[len(lines)-3:]) {
		t.Errorf("the tail is %q", got)
	}
}

// TestLogOptions: which lines are read.
func TestLogOptions(t *testing.T) {
	dir := t.TempDir()
	l := openTestLog(t, dir)
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := begin
	l.now = func() time.Time { return at }
	s := l.Stream("stdout")
	for i := range 5 {
		at = begin.Add(time.Duration(i) * time.Minute)
		_, _ = fmt.Fprintln(s, i)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		o    LogOptions
		want string
	}{
		{LogOptions{Tail: -1}, "01234"}, {LogOptions{Tail: 0}, ""}, {LogOptions{Tail: 2}, "34"},
		{LogOptions{Tail: 99}, "01234"},
		{LogOptions{Tail: -1, Since: begin.Add(2 * time.Minute)}, "234"},
		{LogOptions{Tail: -1, Until: begin.Add(time.Minute)}, "01"},
		{LogOptions{Tail: 1, Until: begin.Add(time.Minute)}, "1"},
		{LogOptions{Tail: -1, Since: begin.Add(time.Hour)}, ""},
	} {
		got := strings.NewReplacer("stdout:", "", "\n", "").Replace(strings.Join(readAll(t, dir, tt.o), ""))
		if got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.o, got, tt.want)
		}
	}
	if got := readAll(t, t.TempDir(), LogOptions{Tail: -1}); got != nil {
		t.Errorf("no log: %q", got)
	}
}

// TestLogOfKilledWriter: half a line, rubbish and endless lines are passed over; the next writer goes on behind them.
func TestLogOfKilledWriter(t *testing.T) {
	dir := t.TempDir()
	l := openTestLog(t, dir)
	_, _ = io.WriteString(l.Stream("stdout"), "first\n")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, logName), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString("[]\n" + strings.Repeat("y", 2*maxRecord) + "\n" + `{"log":"half`)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	l = openTestLog(t, dir)
	_, _ = io.WriteString(l.Stream("stdout"), "second\n")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"stdout:first\n", "stdout:second\n"}, readAll(t, dir, LogOptions{Tail: -1})); d != "" {
		t.Error(d)
	}
}

// TestFollow reads a log while it is written and rotated: no line is missing while the reader keeps up.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	l := openTestLog(t, dir)
	l.max = 4 << 10
	var mu sync.Mutex
	over := false
	read := make(chan string)
	done := make(chan error, 1)
	go func() {
		done <- ReadLog(t.Context(), dir,
			LogOptions{Tail: -1, Ended: func() bool { mu.Lock(); defer mu.Unlock(); return over }},
			func(l Line) error { read <- l.Log; return nil })
	}()
	s := l.Stream("stdout")
	for i := range 60 { // enough for two more files
		want := fmt.Sprintf("%d %s\n", i, strings.Repeat("z", 100))
		if _, err := io.WriteString(s, want); err != nil {
			t.Fatal(err)
		}
		if got := <-read; got != want {
			t.Fatalf("line %q, want %q", got, want)
		}
	}
	mu.Lock()
	over = true
	mu.Unlock()
	if err := errors.Join(<-done, l.Close()); err != nil {
		t.Error(err)
	}
	// Who follows gives up when its context ends, or it has enough.
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	never := LogOptions{Tail: 0, Ended: func() bool { return false }}
	if err := ReadLog(ctx, dir, never, func(Line) error { return nil }); !errors.Is(err, why) {
		t.Error(err)
	}
	never.Tail = 1
	if err := ReadLog(t.Context(), dir, never, func(Line) error { return why }); !errors.Is(err, why) {
		t.Error(err)
	}
}

// TestLogOnFullDisk: a log that cannot be written costs its lines, and says so at the end.
func TestLogOnFullDisk(t *testing.T) {
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err) // where there is no such device there is nothing to see
	}
	l := &Log{dir: t.TempDir(), max: maxLogFile, now: time.Now, f: f}
	n, err := l.Stream("stdout").Write([]byte("lost\n"))
	if n != 5 || err != nil {
		t.Errorf("the program is told: %d, %v", n, err)
	}
	if err := l.Close(); err == nil || !strings.Contains(err.Error(), "lines are missing") {
		t.Error(err)
	}
}

// FuzzReadLog: whatever is in the file, reading ends, and gives no line twice as long as ours.
func FuzzReadLog(f *testing.F) {
	f.Add([]byte(`{"log":"x\n","stream":"stdout","time":"2026-01-01T00:00:00Z"}` + "\n"))
	f.Add(bytes.Repeat([]byte("{"), 300))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, logName), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := ReadLog(t.Context(), dir, LogOptions{Tail: 5}, func(l Line) error {
			if len(l.Log) > maxRecord {
				t.Error("a line that is too long")
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
}
