// Package bootimagetest builds the strata binary and a boot image from it, for tests that start a
// real VM. The running program cannot be used there: it is a test binary.
package bootimagetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stratavm/strata/internal/bootimage"
	"github.com/stratavm/strata/vmm"
)

// Strata compiles cmd/strata for this host, static, and returns its path. What go build has cached it
// does not compile again. The file goes when the test ends.
func Strata(t testing.TB) string {
	t.Helper()
	return Program(t, "cmd/strata")
}

// Program is Strata for another program, named by its folder in this module.
func Program(t testing.TB, folder string) string {
	t.Helper()
	exe := filepath.Join(t.TempDir(), filepath.Base(folder))
	cmd := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-s -w", "-o", exe, "github.com/stratavm/strata/"+folder)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", folder, err, out)
	}
	return exe
}

// Image builds a boot image with the strata binary of this source tree.
func Image(t testing.TB) vmm.BootImage {
	t.Helper()
	return ImageOf(t, Strata(t))
}

// ImageOf builds a boot image with the given binary as /init. The cache is the user's, so that the
// kernel is unpacked once for all tests.
func ImageOf(t testing.TB, init string) vmm.BootImage {
	t.Helper()
	if testing.Short() {
		t.Skip("it boots a VM: run without -short")
	}
	img, err := bootimage.Build(t.Context(), bootimage.Options{InitPath: init})
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return img
}
