package main

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/test/leaktest"
)

// TestKilledTemplate kills a command while it makes a template: the machine that was to be saved ends with it, and the
// next command makes the template and loads its VM from it.
func TestKilledTemplate(t *testing.T) {
	need(t, "qemu-system-x86_64", "qemu-system-x86")
	init := bootimagetest.Strata(t)
	bootimagetest.ImageOf(t, init)
	c := cliBox{t: t, strata: init, state: filepath.Join(t.TempDir(), "state")}
	leaktest.Check(t)
	t.Cleanup(func() { stopAll(t, c.state, c.strata) })
	cmd := c.cmd("vm", "start", "--template")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	wait := func(what string, done func() bool) {
		t.Helper()
		for !done() {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				t.Fatalf("%s: %v", what, context.Cause(ctx))
			}
		}
	}
	templates, pid := filepath.Join(c.state, "cache", "kvm", "templates"), 0
	wait("a machine for the template", func() bool {
		b, err := os.ReadFile(filepath.Join(templates, "making", "pid"))
		if err == nil {
			first, _, _ := strings.Cut(string(b), " ")
			pid, err = strconv.Atoi(first)
		}
		return err == nil
	})
	_ = cmd.Process.Kill() // it runs
	_ = cmd.Wait()
	wait("the end of the machine", func() bool { return unix.Kill(pid, 0) == unix.ESRCH })
	c.run("vm", "start", "--template")
	if out := c.run("vm", "inspect"); !strings.Contains(out, "template") {
		t.Errorf("the VM is not one of a template: %s", out)
	}
	if _, err := os.Stat(filepath.Join(templates, "making")); !os.IsNotExist(err) {
		t.Errorf("what was killed is left: %v", err)
	}
	if kept, err := filepath.Glob(filepath.Join(templates, "*.template")); err != nil || len(kept) != 1 {
		t.Errorf("there are the templates %v (%v)", kept, err)
	}
	c.run("vm", "stop")
}
