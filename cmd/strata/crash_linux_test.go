package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/test/leaktest"
)

// cliBox runs the real binary on a state directory of its own.
type cliBox struct {
	t      *testing.T
	strata string
	state  string
}

func (c cliBox) cmd(args ...string) *exec.Cmd {
	cmd := exec.Command(c.strata, args...)
	cmd.Env = append(os.Environ(), "STRATA_STATE_DIR="+c.state, "STRATA_INIT="+c.strata)
	return cmd
}

func (c cliBox) run(args ...string) string {
	c.t.Helper()
	out, err := c.cmd(args...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("strata %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// interrupt starts a command and sends it a signal after a while. The command may have ended before.
func (c cliBox) interrupt(after time.Duration, sig syscall.Signal, args ...string) {
	c.t.Helper()
	cmd := c.cmd(args...)
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	time.Sleep(after) // where it hits does not matter, what comes after must hold anywhere
	_ = cmd.Process.Signal(sig)
	_ = cmd.Wait() // whatever became of it
}

// layers imports n layers.
func (c cliBox) layers(work string, n int) (folders []string) {
	c.t.Helper()
	tarball := filepath.Join(work, "layer.tar")
	writeBigTar(c.t, tarball, 64<<10)
	for i := range n {
		dir := filepath.Join(work, fmt.Sprint("layer", i))
		c.run("import", "--format", "vhd", tarball, dir) // each a device of its own
		folders = append(folders, dir)
	}
	return folders
}

// interruptMounts interrupts mounting and unmounting in a VM after so many milliseconds each. After a
// recovery a container is there whole or not at all, and without one nothing is held.
func (c cliBox) interruptMounts(vm, scratch string, folders []string, moments ...time.Duration) {
	t := c.t
	t.Helper()
	mount := append([]string{"mount", "--vm", vm, "--scratch", scratch, "web"}, folders...)
	unmount := []string{"unmount", "--vm", vm, "web"}
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
		for _, after := range moments {
			after *= time.Millisecond
			c.interrupt(after, sig, mount...)
			c.run("recover")
			var list []container
			if err := json.Unmarshal([]byte(c.run("--json", "ls")), &list); err != nil {
				t.Fatal(err)
			}
			if len(list) > 0 && (list[0].Phase != "mounted" || list[0].Held != len(folders)+2) {
				t.Errorf("mount interrupted by %v after %v left %+v", sig, after, list)
			}
			if len(list) == 0 {
				c.run(mount...)
			}
			c.interrupt(after, sig, unmount...)
			c.run("recover")
			if strings.Contains(c.run("ls"), "web") {
				c.run(unmount...)
			}
			for line := range strings.Lines(c.run("vm", "inspect", vm)) {
				if strings.HasPrefix(line, "container") || strings.HasPrefix(line, "attached") &&
					!strings.Contains(line, "retained") {
					t.Errorf("after %v at %v this is left: %s", sig, after, line)
				}
			}
			// What this system itself as a machine keeps, where vm is that.
			err := filepath.WalkDir(filepath.Join(c.state, "vms", vm, "host"),
				func(path string, d fs.DirEntry, err error) error {
					if errors.Is(err, fs.ErrNotExist) {
						return nil
					}
					if base := d.Name(); err == nil &&
						!slices.Contains([]string{"host", "machine.json", "devices", "mounts", "fs"}, base) {
						t.Errorf("after %v at %v this is left: %s", sig, after, path)
					}
					return err
				})
			if err != nil {
				t.Error(err)
			}
		}
	}
}

// TestInterruptedHost is TestInterrupted for layers that are mounted on this system itself.
func TestInterruptedHost(t *testing.T) {
	treetest.NeedRoot(t, "to mount")
	c := cliBox{t: t, strata: bootimagetest.Strata(t), state: filepath.Join(t.TempDir(), "state")}
	leaktest.Check(t)
	t.Cleanup(func() { stopAll(t, c.state, c.strata) })
	work := t.TempDir()
	scratch := filepath.Join(work, "scratch")
	if err := os.Mkdir(scratch, 0o700); err != nil {
		t.Fatal(err)
	}
	c.interruptMounts("host", scratch, c.layers(work, 6), 0, 4, 7, 9, 11, 13, 15, 17, 20, 24, 30, 40, 70, 150)
	c.run("vm", "stop", "host")
	if entries, err := os.ReadDir(filepath.Join(c.state, "vms")); err != nil || len(entries) > 0 {
		t.Errorf("left in the state directory: %v %v", entries, err)
	}
}

// TestInterrupted kills and interrupts commands at many moments. The next command mends what they
// left: a container is there whole or not at all, and in the end nothing is.
func TestInterrupted(t *testing.T) {
	c := cliBox{t: t, strata: bootimagetest.Strata(t), state: filepath.Join(t.TempDir(), "state")}
	needVM(t, c.strata)
	leaktest.Check(t)
	t.Cleanup(func() { stopAll(t, c.state, c.strata) })
	work := t.TempDir()
	folders := c.layers(work, 3)
	scratch := filepath.Join(work, "scratch")
	c.run("scratch", "create", "--size", "64M", scratch)

	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		for _, after := range []time.Duration{0, 30 * time.Millisecond, 300 * time.Millisecond} {
			c.interrupt(after, sig, "vm", "start")
			c.run("recover")
			if out := c.run("vm", "ls"); sig == syscall.SIGINT && strings.Contains(out, "stopped") {
				t.Errorf("vm start interrupted by %v after %v left %s", sig, after, out)
			}
			if strings.Contains(c.run("vm", "ls"), "running") {
				c.run("vm", "stop", "--force")
			}
		}
	}
	c.run("vm", "start")
	c.interruptMounts("default", scratch, folders, 0, 5, 15, 40, 80, 150, 300, 600)

	// The VM is there: see what is read of its files.
	c.run(append([]string{"mount", "--scratch", scratch, "web"}, folders...)...)
	c.fifos(map[string][][]string{"vms": {{"vm", "ls"}, {"vm", "inspect"}, {"ls"}, {"recover"}, {"exec", "web", "true"}}},
		"/state/cache", "/state/store") // which the start of another VM and scratches would read
	c.run("unmount", "web")
	c.run("vm", "stop")
	if entries, err := os.ReadDir(filepath.Join(c.state, "vms")); err != nil || len(entries) > 0 {
		t.Errorf("left in the state directory: %v %v", entries, err)
	}
}
