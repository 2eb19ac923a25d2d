package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
)

// TestOtherProgram: any program can start VMs. Without strata-init it is told so before anything boots; with it
// beside the program the guest boots that.
func TestOtherProgram(t *testing.T) {
	dir := t.TempDir()
	goBuild(t, filepath.Join(dir, "program"), "./testdata/otherprogram")
	state := filepath.Join(dir, "state")
	run := func() (string, int) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "program"), filepath.Join(state, "vm"),
			filepath.Join(dir, "cache", "boot"))
		cmd.Env = append(os.Environ(), "STRATA_INIT=")
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	for _, name := range []string{"strata-init", "strata"} {
		if path, err := exec.LookPath(name); err == nil {
			t.Setenv("PATH", withoutDir(filepath.Dir(path)))
		}
	}
	out, code := run()
	if code != 3 || !strings.Contains(out, "program does not carry it") &&
		!strings.Contains(out, "/proc/self/exe does not carry it") ||
		!strings.Contains(out, "cmd/strata-init@latest") {
		t.Errorf("without strata-init: exit code %d, %s", code, out)
	}
	if _, err := os.Stat(state); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused start left a state directory (%v)", err)
	}
	if testing.Short() {
		return
	}
	need(t, "qemu-system-x86_64", "qemu-system-x86")
	bootimagetest.Image(t) // skips where there is no kernel
	goBuild(t, filepath.Join(dir, "strata-init"), "github.com/stratavm/strata/cmd/strata-init")
	if out, code = run(); code != 0 || strings.TrimSpace(out) != "org.stratavm.strata/carries-the-guest-agent/1" {
		t.Errorf("with strata-init beside it: exit code %d, %s", code, out)
	}
}

// goBuild builds a program of this module, static.
func goBuild(t *testing.T, exe, pkg string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-s -w", "-o", exe, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatal(fmt.Errorf("go build %s: %w\n%s", pkg, err, out))
	}
}

// withoutDir is PATH without a folder.
func withoutDir(dir string) string {
	var kept []string
	for _, d := range filepath.SplitList(os.Getenv("PATH")) {
		if filepath.Clean(d) != filepath.Clean(dir) {
			kept = append(kept, d)
		}
	}
	return strings.Join(kept, string(os.PathListSeparator))
}
