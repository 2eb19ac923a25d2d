package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stratavm/strata/test/leaktest"
)

// TestLostVolumeInSharedVM: a container of a VM that others use too, whose virtiofsd is killed, ends, also where its
// program waits for the volume and cannot be ended. It is removed as others are, and the VM goes on.
func TestLostVolumeInSharedVM(t *testing.T) {
	c, tarball := onThisSystem(t)
	needVM(t, c.strata)
	root, dir := tarball(), t.TempDir()
	c.run("vm", "start")
	c.run("run", "-d", "--vm", "default", "--name", "plain", root, "/bin/busybox", "sleep", "1000")
	c.run("run", "-d", "--vm", "default", "--name", "calm", "-v", dir+":/d:ro", root, "/bin/busybox", "sleep", "1000")
	c.run("run", "-d", "--vm", "default", "--name", "busy", "-v", dir+":/d", root, "/bin/busybox", "sh", "-c",
		"while :; do echo x >/d/file; done")
	c.until("the container writes", func() bool {
		_, err := os.Stat(filepath.Join(dir, "file"))
		return err == nil
	})
	killShares(t, filepath.Join(c.state, "vms", "default"))
	for _, name := range []string{"calm", "busy"} {
		c.until(name+" has ended", func() bool { return c.run("inspect", "-f", "{{.State.Status}}", name) == "exited\n" })
		got := c.run("inspect", "-f", "{{.State.ExitCode}} {{.State.Error}}", name)
		if !strings.HasPrefix(got, "125 ") || !strings.Contains(got, "virtiofsd has ended") || !strings.Contains(got, dir) {
			t.Errorf("inspect %s: %s", name, got)
		}
		c.run("rm", "-f", name)
	}
	if got := c.run("ps", "-aq"); strings.Count(got, "\n") != 1 {
		t.Errorf("there are %s", got)
	}

	// The VM, and the others in it, go on, and the folder can be shared again.
	if got := c.run("exec", "plain", "/bin/busybox", "echo", "here"); got != "here\n" {
		t.Errorf("a container beside it: %s", got)
	}
	if got := c.run("run", "--vm", "default", "--name", "calm", "-v", dir+":/d", root,
		"/bin/busybox", "ls", "/d"); !strings.Contains(got, "file") {
		t.Errorf("the folder has %s", got)
	}
	// What is left of a program that cannot be ended keeps the id, no more.
	out, err := c.cmd("run", "--vm", "default", "--name", "busy", root, "/bin/busybox", "true").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "choose another id, or stop the VM") {
		t.Errorf("the id of the container again: %v, %s", err, out)
	}
	c.run("rm", "-f", "plain")
	if got := c.run("--json", "ls"); got != "[]\n" {
		t.Errorf("mounted are %s", got)
	}
	c.run("vm", "stop")
}

// until waits until something is so.
func (c cliBox) until(what string, so func() bool) {
	c.t.Helper()
	for until := time.Now().Add(deadline); !so(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(until) {
			c.t.Fatalf("it is never so that %s", what)
		}
	}
}

// killShares kills what serves the folders that a VM has of this system.
func killShares(t *testing.T, vm string) {
	t.Helper()
	notes, err := filepath.Glob(filepath.Join(vm, "attached", "virtiofs*.server"))
	if err != nil || len(notes) == 0 {
		t.Fatalf("servers: %q, %v", notes, err)
	}
	for _, note := range notes {
		b, err := os.ReadFile(note)
		var pid int
		if _, serr := fmt.Sscan(string(b), &pid); err != nil || serr != nil || pid <= 1 {
			t.Fatalf("%s: %q, %v, %v", note, b, err, serr)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for !leaktest.Ended(pid) {
			time.Sleep(5 * time.Millisecond)
		}
	}
}
