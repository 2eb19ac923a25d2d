package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/internal/lockfile"
	"github.com/stratavm/strata/test/leaktest"
)

// TestTemplateBehind: the first VM of a kind boots, and its template is made in the background, by a process that does
// not hold the command's output open. What a killed one leaves is removed by the next one; from then on VMs are loaded,
// until the template is removed.
func TestTemplateBehind(t *testing.T) {
	need(t, "qemu-system-x86_64", "qemu-system-x86")
	init := bootimagetest.Strata(t)
	bootimagetest.ImageOf(t, init)
	c := cliBox{t: t, strata: init, state: filepath.Join(t.TempDir(), "state")}
	leaktest.Check(t)
	t.Cleanup(func() { stopAll(t, c.state, c.strata) })
	cache := filepath.Join(c.state, "cache", "kvm")
	dir := filepath.Join(cache, "templates")
	is := func(pattern string, want int) {
		t.Helper()
		if have, err := filepath.Glob(filepath.Join(dir, pattern)); err != nil || len(have) != want {
			t.Errorf("there is %v (%v), want %d of %s", have, err, want, pattern)
		}
	}
	const torn, making = ".new-*", "making"
	for turn := 1; ; turn++ { // until it is killed in time
		killWriting(t, c.cmd("vm", "template"), filepath.Join(dir, torn), filepath.Join(dir, "*.template"))
		late, err := filepath.Glob(filepath.Join(dir, "*.template"))
		if err != nil {
			t.Fatal(err)
		}
		if len(late) == 0 || turn == 5 {
			break
		}
		c.run("store", "gc", "--templates")
	}
	is("*.template", 0)
	is(torn, 1)
	is(making, 1)
	template := func(want bool) {
		t.Helper()
		if out := c.run("vm", "inspect"); strings.Contains(out, "template") != want {
			t.Errorf("the VM is one of a template, unlike %v: %s", want, out)
		}
		c.run("exec", "--in-vm", "/init", "--strata-agent")
		c.run("vm", "stop")
	}
	c.run("vm", "start", "--template") // its output ends with it
	waitTemplate(t, dir)
	is(torn, 0)
	is(making, 0)
	is("*.template", 1)
	if b, err := os.ReadFile(filepath.Join(cache, templateLog)); err != nil || !strings.Contains(string(b), "made in") {
		t.Errorf("the log of its making says %q (%v)", b, err)
	}
	template(false)
	for _, flags := range [][]string{{"--template"}, {"--template", "--no-template"}} {
		c.run(append([]string{"vm", "start"}, flags...)...)
		template(len(flags) == 1)
	}
	if out := c.run("vm", "template"); !strings.Contains(out, "already") {
		t.Errorf("a template that is there is made: %s", out)
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
	killWriting(t, c.cmd("vm", "template"), filepath.Join(dir, making, "machine.json"))
	c.run("recover")
	is(making, 0)
}

// waitTemplate waits until a template is there and nobody makes one.
func waitTemplate(t *testing.T, dir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		have, err := filepath.Glob(filepath.Join(dir, "*.template"))
		if err != nil {
			t.Fatal(err)
		}
		if held, err := lockfile.Held(filepath.Join(dir, "making.lock")); err == nil && !held && len(have) > 0 {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal("no template is made")
		case <-time.After(20 * time.Millisecond):
		}
	}
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
