package leaktest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// recorder is a testing.TB that keeps what it is told. Methods that are not here are never called.
type recorder struct {
	testing.TB
	cleanup func()
	errs    []string
}

func (r *recorder) Helper()                   {}
func (r *recorder) Cleanup(f func())          { r.cleanup = f }
func (r *recorder) Errorf(f string, a ...any) { r.errs = append(r.errs, fmt.Sprintf(f, a...)) }

// leaks runs f under the ledger of a test of its own and returns what it complained about. It does
// not wait for things to settle.
func leaks(t *testing.T, dirs []string, f func()) string {
	t.Helper()
	r := &recorder{TB: t}
	check(r, 0, append([]probe{
		{"goroutine", goroutines},
		{"file", func() (map[string]int, error) { return files(dirs) }},
	}, hostProbes(dirs)...))
	f()
	r.cleanup()
	return strings.Join(r.errs, "\n")
}

func want(t *testing.T, got string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(got, p) {
			t.Errorf("the ledger says %q, want %q in it", got, p)
		}
	}
}

func TestWithoutLeaks(t *testing.T) {
	dir := t.TempDir()
	if got := leaks(t, []string{dir}, func() {}); got != "" {
		t.Errorf("the ledger complains: %s", got)
	}
}

func TestGoroutineIsNamed(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	got := leaks(t, nil, func() { go func() { <-stop }() })
	want(t, got, "left behind: goroutine", "TestGoroutineIsNamed")
}

func TestFileIsNamed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "rest")
	got := leaks(t, []string{dir}, func() {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	want(t, got, "file "+path)
}

func TestProbeFails(t *testing.T) {
	r := &recorder{TB: t}
	calls := 0
	check(r, 0, []probe{{"thing", func() (map[string]int, error) {
		if calls++; calls == 1 {
			return nil, nil
		}
		return nil, errors.New("no idea")
	}}})
	r.cleanup()
	want(t, strings.Join(r.errs, "\n"), "listing each thing: no idea")
}

func TestCheckWaits(t *testing.T) {
	done := make(chan struct{})
	t.Run("ends late", func(t *testing.T) {
		Check(t)
		go func() { <-done }()
		t.Cleanup(func() { close(done) })
	})
}
