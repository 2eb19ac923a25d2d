package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFullDisk: what does not fit on the disk is refused with its reason, and leaves nothing.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=1m"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("a small file system needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	tarball := filepath.Join(t.TempDir(), "big.tar")
	writeBigTar(t, tarball, 4<<20)
	for _, args := range [][]string{
		{"import", tarball, filepath.Join(dir, "layer")},
		{"import", "--format", "vhd", tarball, filepath.Join(dir, "layer")},
		{"run", "tar:" + tarball, "--", "true"},
		{"scratch", "create", "--size", "64G", filepath.Join(dir, "scratch")},
	} {
		var out, errs bytes.Buffer
		e := &env{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, getenv: func(string) string { return "" }}
		code := e.run(t.Context(), append([]string{"strata", "--state-dir", filepath.Join(dir, "state")}, args...))
		if code == 0 || !strings.Contains(strings.ToLower(errs.String()), "no space left") {
			t.Errorf("%q: exit code %d, %s", args, code, errs.String())
		}
		var left []string
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() && d.Name() != "lock" { // the lock of the store holds nothing
				left = append(left, path)
			}
			return err
		})
		if err != nil || len(left) > 0 {
			t.Errorf("%q left %q (%v)", args, left, err)
		}
	}
}

func writeBigTar(t *testing.T, path string, n int) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	content := make([]byte, n)
	for i := range content {
		content[i] = byte(i*i>>3 ^ i>>11) // not a hole
	}
	err = w.WriteHeader(&tar.Header{Name: "big", Size: int64(n), Mode: 0o644, Typeflag: tar.TypeReg})
	if err == nil {
		_, err = w.Write(content)
	}
	if err := errors.Join(err, w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}
