package main

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/test/imagetest"
	"github.com/stratavm/strata/test/leaktest"
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

// TestVMScripts runs the scripts that start real VMs, one after the other. "mkimage FILE [-volume=DIR]
// TAR..." makes an image, tagged v1, with imagetest.Config and the tars as layers, the base first.
func TestVMScripts(t *testing.T) {
	need(t, "script", "bsdutils")
	busybox := need(t, "busybox", "busybox-static")
	init := bootimagetest.Strata(t)
	needVM(t, init)
	scripts, err := filepath.Glob("testdata/vm/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("scripts: %v, %v", scripts, err)
	}
	cmds := maps.Clone(commands)
	cmds["mkimage"] = func(ts *testscript.TestScript, _ bool, args []string) {
		blobs := imagetest.Blobs{}
		var layers []imagetest.Layer
		config := maps.Clone(imagetest.Config)
		for _, tar := range args[1:] {
			if dir, ok := strings.CutPrefix(tar, "-volume="); ok {
				config["Volumes"] = map[string]any{dir: map[string]any{}}
				continue
			}
			layers = append(layers, imagetest.Layer{Tar: []byte(ts.ReadFile(tar)), Compression: "gzip"})
		}
		image := blobs.ImageWith(t, &imagetest.Platform{OS: "linux", Architecture: runtime.GOARCH},
			func(document map[string]any) { document["config"] = config }, layers...)
		ts.Check(os.WriteFile(ts.MkAbs(args[0]), blobs.LayoutTar(t, imagetest.Tagged(image, "v1")), 0o644))
	}
	cmds["eventually"], cmds["smallfs"] = lifeCommands["eventually"], smallFS
	for _, script := range scripts {
		t.Run(filepath.Base(script), func(t *testing.T) {
			work := t.TempDir()
			leaktest.Check(t)
			testscript.Run(t, testscript.Params{
				Files: []string{script}, Cmds: cmds, RequireExplicitExec: true, WorkdirRoot: work,
				Condition: func(cond string) (bool, error) {
					if cond != "root" {
						return false, fmt.Errorf("condition %q is not known", cond)
					}
					return os.Geteuid() == 0 || os.Getenv("CI") != "", nil
				},
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

// needVM skips a test, or fails it in CI, where no VM can be started with a build of strata as the guest's agent.
func needVM(t *testing.T, strata string) {
	t.Helper()
	need(t, "qemu-system-x86_64", "qemu-system-x86")
	need(t, "qemu-img", "qemu-utils")
	bootimagetest.ImageOf(t, strata)
}

// stopAll ends the VMs of a state directory.
func stopAll(t *testing.T, state, strata string) {
	entries, _ := os.ReadDir(filepath.Join(state, "vms")) // none is fine
	for _, e := range entries {
		out, err := exec.Command(strata, "--state-dir", state, "vm", "stop", "--force", e.Name()).CombinedOutput()
		t.Logf("the script left VM %s running: %v %s", e.Name(), err, out)
	}
}

// smallFS makes a file system of so many MiB, or changes its size: smallfs DIR MIB.
func smallFS(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: smallfs DIR MIB")
	}
	dir, size := ts.MkAbs(args[0]), "size="+args[1]+"M"
	if fileExists(dir) {
		ts.Check(unix.Mount("", dir, "", unix.MS_REMOUNT, size))
		return
	}
	ts.Check(os.Mkdir(dir, 0o755))
	ts.Check(unix.Mount("tmpfs", dir, "tmpfs", 0, size))
	ts.Defer(func() { ts.Check(unix.Unmount(dir, unix.MNT_DETACH)) })
}
