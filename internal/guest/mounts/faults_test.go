//go:build linux

package mounts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/crun"
	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/guest/procs"
)

// TestRuntimeFaults: whatever the program that runs containers does, a start ends with an error or a program that
// runs, nothing is left behind it, and the next one works.
func TestRuntimeFaults(t *testing.T) {
	r := testRuntime(t)
	r.testContainer(t, "c1")
	spawn := procs.NewSpawner(false)
	good, err := crun.New(spawn.Starter())
	if err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(r.base, "containers")
	const pidFile = `while [ "$1" != --pid-file ]; do shift; [ $# -gt 0 ] || exit 0; done; `
	faults := map[string]string{
		"missing":        "",
		"fails silently": "exit 3",
		"hangs":          "sleep 1000",
		"killed":         "kill -9 $$",
		"no pid":         "exit 0",
		"torn pid":       pidFile + "printf 12x >$2",
		"no child":       pidFile + "printf 2147483 >$2",
		"long words":     `while [ "$1" != --log ]; do shift; done; head -c 300000 /dev/zero | tr '\0' x >$2; exit 1`,
	}
	for _, ms := range []int{2, 5, 10, 20, 30, 40, 60, 90} { // wherever it is by then
		faults[fmt.Sprintf("killed after %d ms",
			ms)] = fmt.Sprintf(`case "$*" in *" run "*) exec timeout -s KILL 0.%03d %s "$@";; esac; exec %[2]s "$@"`, ms,
			good.Path)
	}
	for name, script := range faults {
		t.Run(name, func(t *testing.T) {
			faulty := *good
			faulty.Path = filepath.Join(t.TempDir(), filepath.Base(good.Path))
			faulty.Timeout = time.Second
			if strings.HasPrefix(name, "killed after") {
				faulty.Timeout = 0
			}
			if script != "" {
				write(t, faulty.Path, "#!/bin/sh\n"+script+"\n", 0o755)
			}
			r.UseRuntime(&faulty, state, "")
			pid, err := r.Exec(t.Context(), gcsserver.Process{Container: "c1", Args: []string{"sleep", "1000"}})
			if err == nil && !strings.HasPrefix(name, "killed after") {
				t.Error("no error")
			}
			if err == nil {
				if err := r.Signal(t.Context(), "c1", pid, 9); err != nil && !errors.Is(err, gcsserver.ErrNotFound) {
					t.Error(err)
				}
				if _, err := r.Wait(t.Context(), "c1", pid); err != nil {
					t.Error(err)
				}
			}
			if err != nil && len(err.Error()) > 4000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			r.UseRuntime(good, state, "")
			if left, err := os.ReadDir(state); len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
			if out, code := r.output(t, gcsserver.Process{Container: "c1", Args: []string{"sh", "-c",
				"ps | grep -c 'sleep 100[0]'"}}, ""); out != "0\n" {
				t.Errorf("the next program says %q, code %d", out, code)
			}
		})
	}
}
