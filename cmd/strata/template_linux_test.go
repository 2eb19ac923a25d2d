package main

import (
	"context"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/test/leaktest"
)

// TestKilledTemplate kills a command while it writes the template of the VM that it has just booted: the VM stands still
// then. The next command that opens it has it go on, the torn template goes with the next start of the kind, which saves
// its VM; and from then on VMs are loaded, until the template is removed.
func TestKilledTemplate(t *testing.T) {
	need(t, "qemu-system-x86_64", "qemu-system-x86")
	init := bootimagetest.Strata(t)
	bootimagetest.ImageOf(t, init)
	c := cliBox{t: t, strata: init, state: filepath.Join(t.TempDir(), "state")}
	leaktest.Check(t)
	t.Cleanup(func() { stopAll(t, c.state, c.strata) })
	dir := filepath.Join(c.state, "cache", "kvm", "templates")
	is := func(pattern string, want int) {
		t.Helper()
		if have, err := filepath.Glob(filepath.Join(dir, pattern)); err != nil || len(have) != want {
			t.Errorf("there is %v (%v), want %d of %s", have, err, want, pattern)
		}
	}
	const torn = ".new-*"
	for turn := 1; ; turn++ { // until the command is killed in time
		killWriting(t, c.cmd("vm", "start", "--template"), filepath.Join(dir, torn), filepath.Join(dir, "*.template"))
		late, err := filepath.Glob(filepath.Join(dir, "*.template"))
		if err != nil {
			t.Fatal(err)
		}
		if len(late) == 0 || turn == 5 {
			break
		}
		c.run("vm", "stop")
		c.run("store", "gc", "--templates")
	}
	is("*.template", 0)
	is(torn, 1)
	template := func(want bool) {
		t.Helper()
		if out := c.run("vm", "inspect"); strings.Contains(out, "template") != want {
			t.Errorf("the VM is one of a template, unlike %v: %s", want, out)
		}
	}
	template(false)
	c.run("exec", "--in-vm", "/init", "--strata-agent")
	c.run("vm", "stop")
	for i, flags := range [][]string{{"--template"}, {"--template"}, {"--template", "--no-template"}} {
		c.run(append([]string{"vm", "start"}, flags...)...)
		is(torn, 0)
		is("*.template", 1)
		template(i == 1)
		c.run("vm", "stop")
	}
	if out := c.run("doctor"); !strings.Contains(out, "1 template, ") {
		t.Errorf("doctor knows of no template: %s", out)
	}
	if out := c.run("store", "gc"); strings.Contains(out, "template") {
		t.Errorf("a template that was just used goes: %s", out)
	}
	for _, dryRun := range []string{"--dry-run=true", "--dry-run=false"} {
		is("*.template", 1)
		if out := c.run(dryRun, "store", "gc", "--templates"); !strings.Contains(out, "template ") {
			t.Errorf("what goes, %s: %s", dryRun, out)
		}
	}
	is("*.template", 0)
}

// killWriting kills a command once there is a file like one of the patterns.
func killWriting(t *testing.T, cmd *exec.Cmd, patterns ...string) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !slices.ContainsFunc(patterns, func(pattern string) bool {
		have, err := filepath.Glob(pattern)
		return err != nil || len(have) > 0
	}) {
		if ctx.Err() != nil {
			_ = cmd.Process.Kill() // it may have ended
			_ = cmd.Wait()
			t.Fatal("no template is written")
		}
		time.Sleep(time.Millisecond)
	}
	_ = cmd.Process.Kill() // it runs, or has just ended
	_ = cmd.Wait()
}
