package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/hostmount"
	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/test/nettest"
)

// TestUserNamespaceScripts runs the scripts that mount layers as root of a user namespace.
func TestUserNamespaceScripts(t *testing.T) {
	busybox := need(t, "busybox", "busybox-static")
	for _, ids := range []int{65536, 1} {
		t.Run(fmt.Sprintf("%d ids", ids), func(t *testing.T) {
			if !treetest.InUserNamespace(t, ids) {
				return
			}
			leaktest.Check(t)
			cmds := maps.Clone(commands)
			maps.Copy(cmds, networkCommands)
			cmds["killsupervisor"] = lifeCommands["killsupervisor"]
			testscript.Run(t, testscript.Params{Dir: "testdata/userns", Cmds: cmds, RequireExplicitExec: true,
				WorkdirRoot: t.TempDir(),
				Setup: func(env *testscript.Env) error {
					env.Setenv("BUSYBOX", busybox)
					env.Setenv("HOSTIP", nettest.HostAddress(t))
					for i := range 2 {
						env.Setenv(fmt.Sprintf("PORT%d", i+1), fmt.Sprint(nettest.UnusedPort(t)))
					}
					env.Defer(func() { removeAll(t, env.Getenv("STRATA_STATE_DIR"), env.Getenv("STRATA")) })
					return setup(env)
				}})
		})
	}
}

// TestInterruptedInUserNamespace kills and interrupts commands at many moments. The next command mends what
// they left.
func TestInterruptedInUserNamespace(t *testing.T) {
	if !treetest.InUserNamespace(t, 65536) {
		return
	}
	leaktest.Check(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	c := cliBox{t: t, strata: filepath.Join(work, "strata"), state: filepath.Join(work, "state")}
	if err := os.Symlink(self, c.strata); err != nil { // by this name it is the command: see TestMain
		t.Fatal(err)
	}
	tarball, scratch := filepath.Join(work, "big.tar"), filepath.Join(work, "scratch")
	writeBigTar(t, tarball, 8<<20)
	if err := os.Mkdir(scratch, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
		for _, after := range []time.Duration{0, 5, 10, 15, 20, 30, 50, 80} {
			after *= time.Millisecond
			c.interrupt(after, sig, "mount", "--vm", "host", "--scratch", scratch, "web", "tar:"+tarball)
			c.run("recover")
			if out := c.run("store", "check"); !strings.Contains(out, " 0 problems") {
				t.Errorf("mount interrupted by %v after %v: %s", sig, after, out)
			}
			var list []container
			if err := json.Unmarshal([]byte(c.run("--json", "ls")), &list); err != nil {
				t.Fatal(err)
			}
			if len(list) > 0 && (list[0].Phase != "mounted" || list[0].Held != 3) {
				t.Errorf("mount interrupted by %v after %v left %+v", sig, after, list)
			}
			if len(list) == 0 {
				c.run("mount", "--vm", "host", "--scratch", scratch, "web", "tar:"+tarball)
			}
			c.interrupt(after, sig, "unmount", "--vm", "host", "web")
			c.run("recover")
			if strings.Contains(c.run("ls"), "web") {
				c.run("unmount", "--vm", "host", "web")
			}
			c.run("image", "rm", "big")
			// recover takes away the state of this system itself, where nothing is mounted on it any more.
			for dir, mayGo := range map[string]bool{"store/tmp": false, "store/layers/sha256": false,
				"store/chains/sha256": false, "store/images": false,
				"vms/host/host/fs": true, "vms/host/host/mounts": true, "vms/host/host/devices": true} {
				left, err := os.ReadDir(filepath.Join(c.state, dir))
				if mayGo && errors.Is(err, os.ErrNotExist) {
					continue
				}
				if err != nil || len(left) > 0 {
					t.Errorf("after %v at %v: %s holds %v, %v", sig, after, dir, left, err)
				}
			}
			if left, err := hostmount.Mounts(c.state); err != nil || len(left) > 0 {
				t.Errorf("after %v at %v: mounted are %q, %v", sig, after, left, err)
			}
		}
	}
}
