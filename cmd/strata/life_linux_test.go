package main

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/test/leaktest"
)

// lifeCommands are what scripts about detached containers can do besides.
var lifeCommands = map[string]func(*testscript.TestScript, bool, []string){
	// eventually PATTERN COMMAND...: until the output of strata matches.
	"eventually": func(ts *testscript.TestScript, neg bool, args []string) {
		until := time.Now().Add(deadline)
		for {
			ts.Check(ts.Exec("strata", args[1:]...))
			if strings.Contains(ts.ReadFile("stdout"), args[0]) != neg {
				return
			}
			if time.Now().After(until) {
				ts.Fatalf("strata %q never says %q", args[1:], args[0])
			}
			time.Sleep(20 * time.Millisecond)
		}
	},
	// killsupervisor NAME
	"killsupervisor": func(ts *testscript.TestScript, _ bool, args []string) {
		ts.Check(ts.Exec("strata", "inspect", args[0]))
		_, rest, _ := strings.Cut(ts.ReadFile("stdout"), `"supervisor": `)
		pid, err := strconv.Atoi(strings.FieldsFunc(rest, func(c rune) bool { return c < '0' || c > '9' })[0])
		ts.Check(err)
		ts.Check(syscall.Kill(pid, syscall.SIGKILL))
		for !leaktest.Ended(pid) {
			time.Sleep(5 * time.Millisecond)
		}
	},
}

// TestLifeScripts runs the scripts about containers that outlive their command, on this system itself.
func TestLifeScripts(t *testing.T) {
	treetest.NeedRoot(t, "to mount")
	busybox := need(t, "busybox", "busybox-static")
	need(t, "crun", "crun")
	init := bootimagetest.Strata(t)
	for name, f := range commands {
		lifeCommands[name] = f
	}
	scripts, err := filepath.Glob("testdata/life/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("scripts: %v, %v", scripts, err)
	}
	for _, script := range scripts {
		t.Run(filepath.Base(script), func(t *testing.T) {
			work := t.TempDir()
			leaktest.Check(t)
			testscript.Run(t, testscript.Params{
				Files: []string{script}, Cmds: lifeCommands, RequireExplicitExec: true, WorkdirRoot: work,
				Setup: func(env *testscript.Env) error {
					env.Setenv("STRATA_INIT", init)
					env.Setenv("BUSYBOX", busybox)
					env.Defer(func() { removeAll(t, env.Getenv("STRATA_STATE_DIR"), env.Getenv("STRATA")) })
					return setup(env)
				},
			})
		})
	}
}

// removeAll ends and removes the containers of a state directory.
func removeAll(t *testing.T, state, strata string) {
	ids, err := exec.Command(strata, "--state-dir", state, "ps", "-aq").Output()
	if err != nil {
		t.Errorf("list the containers that are left: %v", err)
	}
	for _, id := range strings.Fields(string(ids)) {
		out, err := exec.Command(strata, "--state-dir", state, "rm", "-f", id).CombinedOutput()
		t.Logf("the test left container %s: %v %s", id, err, out)
	}
	stopAll(t, state, strata)
}
