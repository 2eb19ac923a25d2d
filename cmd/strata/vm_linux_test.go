package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/stratavm/strata/bootimage/bootimagetest"
	"github.com/stratavm/strata/internal/leaktest"
)

// need finds a program, or says how to get it.
func need(t *testing.T, program, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("%v: apt-get install %s", err, pkg)
	}
	return path
}

// TestVMScripts runs the scripts that start real VMs, one after the other.
func TestVMScripts(t *testing.T) {
	need(t, "qemu-system-x86_64", "qemu-system-x86")
	need(t, "qemu-img", "qemu-utils")
	busybox := need(t, "busybox", "busybox-static")
	init := bootimagetest.Strata(t)
	bootimagetest.ImageOf(t, init) // skips where there is no kernel
	scripts, err := filepath.Glob("testdata/vm/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("scripts: %v, %v", scripts, err)
	}
	for _, script := range scripts {
		t.Run(filepath.Base(script), func(t *testing.T) {
			work := t.TempDir()
			leaktest.Check(t)
			testscript.Run(t, testscript.Params{
				Files: []string{script}, Cmds: commands, RequireExplicitExec: true, WorkdirRoot: work,
				Setup: func(env *testscript.Env) error {
					env.Setenv("STRATA_INIT", init)
					env.Setenv("BUSYBOX", busybox)
					// Whatever a script leaves running must not outlive it.
					env.Defer(func() { stopAll(t, env.Getenv("STRATA_STATE_DIR"), env.Getenv("STRATA")) })
					return setup(env)
				},
			})
		})
	}
}

// stopAll ends the VMs of a state directory.
func stopAll(t *testing.T, state, strata string) {
	entries, _ := os.ReadDir(filepath.Join(state, "vms")) // none is fine
	for _, e := range entries {
		out, err := exec.Command(strata, "--state-dir", state, "vm", "stop", "--force", e.Name()).CombinedOutput()
		t.Logf("the script left VM %s running: %v %s", e.Name(), err, out)
	}
}
