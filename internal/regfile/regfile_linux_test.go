package regfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stratavm/strata/internal/regfile"
)

// TestRead: what is no file, or too much, is an error at once.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.WriteFile(at("file"), []byte("12345"), 0o600), syscall.Mkfifo(at("fifo"), 0o600),
		os.Mkdir(at("dir"), 0o700), os.Symlink("fifo", at("link"))); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path  string
		limit int64
		want  error
	}{
		{at("file"), 5, nil},
		{at("file"), 4, regfile.ErrTooLarge},
		{at("fifo"), 5, regfile.ErrNotRegular},
		{at("link"), 5, regfile.ErrNotRegular},
		{at("dir"), 5, regfile.ErrNotRegular},
		{"/dev/zero", 5, regfile.ErrNotRegular},
		{at("none"), 5, fs.ErrNotExist},
	} {
		b, err := regfile.Read(c.path, c.limit)
		if !errors.Is(err, c.want) || err == nil && string(b) != "12345" {
			t.Errorf("%s with a limit of %d: %q, %v", c.path, c.limit, b, err)
		}
	}
}

// TestOpenFile: what is no file is not opened for writing either, and one that is not there is made.
func TestOpenFile(t *testing.T) {
	dir := t.TempDir()
	fifo, fresh := filepath.Join(dir, "fifo"), filepath.Join(dir, "fresh")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, flags := range []int{os.O_WRONLY | os.O_CREATE | os.O_TRUNC, os.O_RDWR, os.O_WRONLY | os.O_APPEND} {
		for _, path := range []string{fifo, dir, os.DevNull} {
			if f, err := regfile.OpenFile(path, flags, 0o600); f != nil || !errors.Is(err, regfile.ErrNotRegular) {
				t.Errorf("%s with flags %#x: %v", path, flags, err)
			}
		}
	}
	if _, err := regfile.OpenFile(fresh, os.O_RDWR, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	for range 2 { // a new one, and one that is there
		f, err := regfile.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err == nil {
			_, err = f.WriteString("x")
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if b, err := regfile.ReadState(fresh); string(b) != "xx" {
		t.Errorf("read %q, %v", b, err)
	}
}
