package treetest

import (
	"archive/tar"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// Untar unpacks a tar file with all that it says into a folder. It needs root. More arguments are tar's.
func Untar(t testing.TB, file, dir string, args ...string) {
	t.Helper()
	Run(t, "tar", append([]string{"--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", file, "-C", dir},
		args...)...)
}

// Implied returns the directories that a tar has something in but no entry for. Programs do not agree on
// their attributes: tar gives them the time of its running, umoci leaves them as the layers below made
// them, and a layer that is converted by itself has to make them up (0755, root, its first child's time).
func Implied(t testing.TB, r io.Reader) map[string]bool {
	t.Helper()
	own, parents := map[string]bool{}, map[string]bool{".": true}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		name := path.Clean(h.Name)
		own[name] = true
		for d := path.Dir(name); d != "."; d = path.Dir(d) {
			parents[d] = true
		}
	}
	maps.DeleteFunc(parents, func(d string, _ bool) bool { return own[d] })
	return parents
}

// WithoutTimes is a description without the times of some directories.
func WithoutTimes(d map[string]string, dirs map[string]bool) map[string]string {
	out := maps.Clone(d)
	for p := range dirs {
		line := out[p]
		if before, after, ok := strings.Cut(line, " mtime="); ok && strings.HasPrefix(line, "mode=40") {
			_, attributes, _ := strings.Cut(after, " ")
			out[p] = strings.TrimSpace(before + " " + attributes)
		}
	}
	return out
}

// Unmarked is a description without the mark of implied directories, which a layer in EROFS that is
// mounted by itself shows (package erofs). Below an overlay and in an index it must not be seen.
func Unmarked(d map[string]string) map[string]string {
	out := maps.Clone(d)
	for p, line := range d {
		out[p] = strings.Replace(line, " trusted.overlay.strata.implied=79", "", 1)
	}
	return out
}

// Lister builds the program in testdata/tree, which prints what List gives, for a guest to run.
func Lister(t testing.TB) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "tree")
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-s -w", "-o", program,
		"github.com/stratavm/strata/internal/format/layertree/treetest/testdata/tree")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}
