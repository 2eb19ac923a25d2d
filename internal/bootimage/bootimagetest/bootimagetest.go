// Package bootimagetest builds the strata binary and a boot image from it, for tests that start a
// real VM. The running program cannot be used there: it is a test binary.
package bootimagetest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stratavm/strata/internal/bootimage"
	"github.com/stratavm/strata/vmm"
)

// Strata compiles cmd/strata for this host, static, and returns its path. The file goes
// when the test ends. Tests that use it are run by leaktest.Main.
func Strata(t testing.TB) string {
	t.Helper()
	return Program(t, "cmd/strata")
}

// Program is Strata for another program, named by its folder in this module.
func Program(t testing.TB, folder string) string {
	t.Helper()
	build, _ := programs.LoadOrStore(folder, sync.OnceValues(func() (string, error) { return compile(folder) }))
	exe, err := build.(func() (string, error))()
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(t.TempDir(), filepath.Base(folder))
	if err := os.Link(exe, own); err != nil {
		t.Fatal(err)
	}
	return own
}

// programs are compiled once for all tests of a process: what links them, by folder.
var programs sync.Map

// compile links a program in a folder for temporary files, which leaktest.Main removes.
func compile(folder string) (string, error) {
	dir, err := os.MkdirTemp("", "strata-program-*")
	if err != nil {
		return "", err
	}
	exe := filepath.Join(dir, filepath.Base(folder))
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", exe, "github.com/stratavm/strata/"+folder)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", folder, err, out)
	}
	return exe, nil
}

// Image builds a boot image with the strata binary of this source tree.
func Image(t testing.TB) vmm.BootImage {
	t.Helper()
	needVM(t)
	return ImageOf(t, Strata(t))
}

// ImageOf builds a boot image with the given binary as /init. The cache is the user's, so that the
// kernel is unpacked once for all tests.
func ImageOf(t testing.TB, init string) vmm.BootImage {
	t.Helper()
	needVM(t)
	img, err := bootimage.Build(t.Context(), bootimage.Options{InitPath: init})
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return img
}

func needVM(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("it boots a VM: run without -short")
	}
}
