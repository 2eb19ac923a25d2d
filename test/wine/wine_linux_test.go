package winetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata/test/wine/standin"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// module is the path that packages are named with.
const module = "github.com/stratavm/strata"

// packages are those whose tests run as Windows programs, and which of their tests do not: those that
// open thousands of files, which is slow under Wine, with code that is the same as here.
var packages = []struct{ path, skip string }{
	{"/internal/hostpath", ""}, {"/internal/lockfile", ""}, {"/layerdir", ""}, {"/uvm", "JournalTorn"}, {"/store", ""},
	{"/image", ""}, {"/cmd/strata", ""}, {"/hcsschema", ""}, {"/vmm/hcs", ""}, {"/vmm/argon", ""},
	{"/internal/wclayer", ""},
	{"/layers", "PairsOfFaults|CompressedLayers"}, {"/test/wine", ""},
}

// limit bounds one test binary. Wine is slow to start, and its first start slower still.
const limit = 5 * time.Minute

// start creates a prefix for a test, whose system stays: else each program would wait for it to start and to end.
func start(t *testing.T) *Prefix {
	t.Helper()
	if testing.Short() {
		t.Skip("it runs Wine: run without -short")
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir() // no home directory, as in some containers
	}
	p, err := Open(ctx, filepath.Join(cache, "strata-winetest"))
	if errors.Is(err, ErrMissing) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := p.Stay(ctx); err != nil {
		t.Fatal(err)
	}
	return p
}

// goForWindows runs the Go tool for Windows.
func goForWindows(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// TestWine runs the tests of the Windows build under Wine, against the stand-in. Each package gets a
// service of its own and must leave nothing in it.
func TestWine(t *testing.T) {
	prefix := start(t)
	for _, p := range packages {
		pkg := p.path
		t.Run(strings.TrimPrefix(pkg, "/"), func(t *testing.T) {
			server, err := standin.Listen(standin.ServerOptions{Service: hcstest.Options{Exec: copyProcess}})
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			dir := t.TempDir()
			exe := filepath.Join(dir, "test.exe")
			if err := goForWindows(t.Context(), "test", "-c", "-o", exe, module+pkg); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(exe); errors.Is(err, os.ErrNotExist) {
				t.Fatalf("%s has no tests for Windows", pkg)
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			cmd := prefix.Command(ctx, exe, "-test.v", "-test.skip="+p.skip, "-test.timeout="+limit.String())
			cmd.Dir = filepath.Join("..", "..", filepath.FromSlash(strings.TrimPrefix(pkg, "/")))
			// The tests for hosts with Hyper-V run here on the stand-in, so that they are known to work.
			cmd.Env = append(cmd.Env, server.Env(), "STRATA_HYPERV=1", "STRATA_BOOT_FILES="+Path(bootFiles(t)),
				`STRATA_BASE_LAYER=C:\base`)
			out, err := cmd.CombinedOutput()
			report(t, string(out))
			if err != nil {
				t.Errorf("%s: %v", pkg, err)
			}
			if left := server.Leftovers(); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// bootFiles creates a folder with what a Linux guest boots; the stand-in does not read it.
func bootFiles(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"kernel", "initrd.img"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// report shows a test binary's output: all of it after a failure or with -v, else only the skips.
func report(t *testing.T, out string) {
	t.Helper()
	passed := strings.Count(out, "--- PASS")
	failed := strings.Count(out, "--- FAIL")
	t.Logf("%d passed, %d failed, %d skipped", passed, failed, strings.Count(out, "--- SKIP"))
	if passed+failed == 0 {
		t.Errorf("no test ran")
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for i, line := range lines {
		if failed > 0 || strings.HasPrefix(line, "--- PASS: TestHCSConformanceNative") ||
			strings.Contains(line, "--- SKIP") || strings.HasPrefix(line, "panic") || strings.HasPrefix(line, "fatal") {
			t.Log(strings.TrimRight(line, "\r"))
			if failed == 0 && i+1 < len(lines) {
				t.Log(lines[i+1])
			}
		}
	}
}
