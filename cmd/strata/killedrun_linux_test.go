package main

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/test/leaktest"
)

// TestKilledRun kills a run while its program runs. What comes next takes away all that it made: the
// container, the VM if it was the run's own, the scratch.
func TestKilledRun(t *testing.T) {
	treetest.NeedRoot(t, "to mount")
	busybox, err := os.ReadFile(need(t, "busybox", "busybox-static"))
	if err != nil {
		t.Fatal(err)
	}
	init := bootimagetest.Strata(t)
	needVM(t, init)
	tarball := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(tarball, treetest.Tar(t,
		treetest.Entry{Name: "bin/busybox", Mode: 0o755, Body: string(busybox)}), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		flags []string // of the run that is killed
		next  []string // what comes next
		says  string   // and what it says
	}{
		{name: "on this system", flags: []string{"--isolation=process"}, next: []string{"recover"},
			says: "killed: what this interrupted run left is taken away\n"},
		{name: "before another run", flags: []string{"--isolation=process"},
			next: []string{"run", "--isolation=process", tarball, "--", "/bin/busybox", "true"},
			says: "strata: what the interrupted run killed left is taken away\n"},
		{name: "before another run of the id", flags: []string{"--isolation=process"},
			next: []string{"run", "--id", "killed", "--isolation=process", tarball, "--", "/bin/busybox", "true"}},
		{name: "in a VM of its own", next: []string{"recover"},
			says: "killed: what this interrupted run left is taken away\n"},
		{name: "in a VM that runs", flags: []string{"--vm", "default"}, next: []string{"vm", "stop"},
			says: "strata: what the interrupted run killed left is taken away\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := cliBox{t: t, strata: init, state: filepath.Join(t.TempDir(), "state")}
			leaktest.Check(t)
			t.Cleanup(func() { stopAll(t, c.state, c.strata) })
			if slices.Contains(tt.flags, "--vm") {
				c.run("vm", "start")
			}
			cmd := c.cmd(append(append([]string{"run", "--id", "killed"}, tt.flags...), tarball, "--", "/bin/busybox", "sh",
				"-c", "echo up; exec sleep 1000")...)
			out, err := cmd.StdoutPipe()
			if err == nil {
				cmd.Stderr = os.Stderr
				err = cmd.Start()
			}
			if err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if line != "up\n" {
				t.Errorf("the program says %q, %v", line, err)
			}
			if tt.name == "on this system" { // one that lives is left alone
				if got := c.run("recover"); got != "host: in order, 1 container\n" {
					t.Errorf("recover beside a run that lives: %s", got)
				}
			}
			_ = cmd.Process.Kill() // it runs, or is no more
			_ = cmd.Wait()
			if got := c.run(tt.next...); !strings.Contains(got, tt.says) {
				t.Errorf("%q says %q, not %q", tt.next, got, tt.says)
			}
			for _, dir := range []string{"run", "vms"} {
				if left, err := os.ReadDir(filepath.Join(c.state, dir)); err != nil || len(left) > 0 {
					t.Errorf("left in %s: %v, %v", dir, left, err)
				}
			}
		})
	}
}
