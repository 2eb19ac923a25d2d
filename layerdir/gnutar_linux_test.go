package layerdir_test

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

// sparse creates a file of a size with a little data here and there.
func sparse(t *testing.T, path string, size int64, data string, at ...int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	err = f.Truncate(size)
	for _, off := range at {
		_, werr := f.WriteAt([]byte(data), off)
		err = errors.Join(err, werr)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// gnuTar packs a tree.
func gnuTar(t *testing.T, dir string, args ...string) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "a.tar")
	treetest.Run(t, "tar", append(args, "--sort=name", "--numeric-owner", "-C", dir, "-cf", file, ".")...)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// tarTree creates a tree that needs the extensions that formats of tars have: what lies in split is beyond
// the oldest of them, and what lies in beyond is for those of GNU and POSIX alone.
func tarTree(t *testing.T) string {
	t.Helper()
	check := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	long := func(c string, n int) string { return strings.Repeat(c, n) }
	deep := "beyond/" + long("a", 200) + "/" + long("b", 200) + "/" + long("c", 200)
	for _, f := range []string{"file", "split/" + long("s", 90) + "/" + long("f", 80), "beyond/" + long("n", 101),
		"beyond/" + long("N", 255), deep, "caf\xe9\xff", "beyond/" + long("\xfe", 120)} { // the last are no UTF-8
		check(os.MkdirAll(filepath.Dir(at(f)), 0o755), os.WriteFile(at(f), []byte(f), 0o644))
	}
	check(os.Link(at("file"), at("link")), os.Link(at(deep), at("beyond/zlink"))) // the second names all of its target
	check(os.Symlink("caf\xe9\xff", at("to-latin")))
	check(os.Symlink(long("t", 100), at("symlink")), os.Symlink(long("t", 101), at("beyond/symlink101")),
		os.Symlink(long("t/", 150), at("beyond/symlink300")))
	sparse(t, at("beyond/holes"), 3<<20, "data", 100_000, 1<<20)
	check(os.Chown(at("beyond/holes"), 3_000_000, 4_000_000)) // more than seven octal digits
	// Only POSIX keeps parts of seconds.
	sec := int64(1_500_000_000)
	check(filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		sec++
		return errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Sec: sec}, {Sec: sec}},
			unix.AT_SYMLINK_NOFOLLOW))
	}))
	return dir
}

// TestGNUTar: what GNU tar writes in each of its formats becomes the tree that it was made of.
func TestGNUTar(t *testing.T) {
	needRoot(t)
	dir := tarTree(t)
	all := treetest.Describe(t, dir)
	for _, c := range []struct{ args, without string }{
		{"--format=v7", "beyond split"},
		{"--format=ustar", "beyond"},
		{"--format=oldgnu", ""},
		{"--format=oldgnu -S", ""},
		{"--format=gnu", ""},
		{"--format=gnu -S", ""},
		{"--format=posix", ""},
		{"--format=posix -S", ""},
		{"--format=posix -S --sparse-version=0.1", ""},
		{"--format=posix -S --sparse-version=0.0", ""},
	} {
		t.Run(c.args, func(t *testing.T) {
			args, want := strings.Fields(c.args), maps.Clone(all)
			for _, out := range strings.Fields(c.without) {
				args = append(args, "--exclude=./"+out)
				maps.DeleteFunc(want, func(path, _ string) bool { return path == out || strings.HasPrefix(path, out+"/") })
			}
			tar := gnuTar(t, dir, args...)
			for i, f := range formats {
				if d := treetest.Diff(want, mounted(t, i, convert(t, i, tar))); d != "" {
					t.Errorf("%s: %s", f.format, d)
				}
			}
		})
	}
}

// TestGNUTarLarge: a file of more than 4 GiB, nearly all of it holes, keeps its size, its data and its holes.
func TestGNUTarLarge(t *testing.T) {
	needRoot(t)
	const size, data = 5<<30 + 3, "some data"
	spots := []int64{0, 1<<32 - 4096, 1<<32 + 12_288, size - int64(len(data))}
	dir := t.TempDir()
	sparse(t, filepath.Join(dir, "large"), size, data, spots...)
	for _, format := range []string{"oldgnu", "gnu", "posix"} {
		tar := gnuTar(t, dir, "-S", "--format="+format)
		for i, f := range formats {
			t.Run(format+" "+string(f.format), func(t *testing.T) {
				path := convert(t, i, tar)
				if st, err := os.Stat(path); err != nil || st.Size() > 64<<20 {
					t.Errorf("the layer has %d bytes, %v", st.Size(), err)
				}
				large, err := os.Open(filepath.Join(treetest.Mount(t, path, f.fstype), "large"))
				if err != nil {
					t.Fatal(err)
				}
				defer large.Close()
				if st, err := large.Stat(); err != nil || st.Size() != size {
					t.Errorf("%d bytes, want %d, %v", st.Size(), int64(size), err)
				}
				// What is around the data must be zero.
				const around = 64 << 10
				for _, off := range spots {
					from := max(0, off-around)
					want := make([]byte, min(off+around, size)-from)
					for _, at := range spots {
						if from <= at && at < from+int64(len(want)) {
							copy(want[at-from:], data)
						}
					}
					got := make([]byte, len(want))
					if _, err := large.ReadAt(got, from); err != nil || string(got) != string(want) {
						t.Errorf("around byte %d: other bytes, %v", off, err)
					}
				}
			})
		}
	}
}
