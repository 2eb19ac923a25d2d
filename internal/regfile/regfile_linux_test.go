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
