package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// holds checks the content of a file and that nothing else is in its folder.
func holds(t *testing.T, path, want string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if want == "" && errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil || string(b) != want {
		t.Errorf("the file holds %q (%v), want %q", b, err, want)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	for _, e := range entries {
		if e.Name() != filepath.Base(path) {
			t.Errorf("left: %s", e.Name())
		}
	}
	if err != nil {
		t.Error(err)
	}
}

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, o := range []Options{{}, {Sync: true}, {Mode: 0o644}} {
		for _, content := range []string{"first", "second"} {
			if err := Write(path, []byte(content), o); err != nil {
				t.Fatal(err)
			}
			holds(t, path, content)
		}
		want := o.Mode
		if want == 0 {
			want = 0o600
		}
		if st, err := os.Stat(path); runtime.GOOS != "windows" && (err != nil || st.Mode() != want) {
			t.Errorf("mode %v (%v), want %v", st.Mode(), err, want)
		}
	}
}

func TestOldContentUntilCommit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := Write(path, []byte("old"), Options{}); err != nil {
		t.Fatal(err)
	}
	f, err := Create(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("new"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "old" {
		t.Errorf("before Commit: %q %v", b, err)
	}
	if err := f.Abandon(); err != nil {
		t.Error(err)
	}
	if err := f.Abandon(); err != nil {
		t.Errorf("abandoned again: %v", err)
	}
	holds(t, path, "old")
}

func TestFailureLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "folder", "file")
	if err := Write(path, nil, Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a folder that is not there: %v", err)
	}
	// A folder that is not empty cannot be replaced.
	if err := os.MkdirAll(filepath.Join(path, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, []byte("x"), Options{}); err == nil {
		t.Error("a folder was replaced by a file")
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left: %v %v", entries, err)
	}
}

func TestSweep(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f, err := Create(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil { // as a process that is killed
		t.Fatal(err)
	}
	if err := Sweep(filepath.Dir(path)); err != nil {
		t.Error(err)
	}
	holds(t, path, "")
}
